package probes

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/plainframework/agent/internal/probes/process"
)

// TestForgetImages: the programs remember what they read from images by the numbers of
// binaries, which are given again, so nothing is left when the next binary is read.
func TestForgetImages(t *testing.T) {
	s := startService(t)
	a := startAgentOn(t, Options{PIDs: []int{s.pid}}, &sink{}, &lines{})
	remembered := func() []byte {
		memory, err := a.kernel.mapOf("images").Memory()
		if err != nil {
			t.Fatal(err)
		}
		all := make([]byte, memory.Size())
		if _, err := memory.ReadAt(all, 0); err != nil {
			t.Fatal(err)
		}
		return bytes.Trim(all, "\x00")
	}
	for range 2 { // what was not read in full the first time is then
		res, err := http.Get(s.url + "/plain")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	if len(remembered()) == 0 {
		t.Fatal("nothing is remembered of a request")
	}
	data, err := os.ReadFile(s.exe)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, data, 0o755); err != nil {
		t.Fatal(err)
	}
	id, err := process.Stat(other)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.targets.read(id, other, other); err != nil {
		t.Fatal(err)
	}
	if left := remembered(); len(left) > 0 {
		t.Errorf("%d bytes are remembered of the one before", len(left))
	}
}
