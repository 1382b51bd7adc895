package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRun feeds what "go test -json" of Go 1.26 prints for a package that
// passes, one with a failed and a skipped test, one that panics, and one that
// does not build because of another.
func TestRun(t *testing.T) {
	const in = `{"Action":"start","Package":"m/good"}
{"Action":"output","Package":"m/good","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"pass","Package":"m/good","Test":"TestA","Elapsed":0}
{"Action":"pass","Package":"m/good","Test":"TestA/sub","Elapsed":0}
{"Action":"pass","Package":"m/good","Elapsed":0.52}
{"Action":"output","Package":"m/bad","Test":"TestB","Output":"    b_test.go:9: is 1, want 2\n"}
{"Action":"output","Package":"m/bad","Test":"TestB","Output":"        and what a process printed\n"}
{"Action":"fail","Package":"m/bad","Test":"TestB","Elapsed":0}
{"Action":"output","Package":"m/bad","Test":"TestC","Output":"=== RUN   TestC\n"}
{"Action":"output","Package":"m/bad","Test":"TestC","Output":"    c_test.go:7: no such kernel feature\n"}
{"Action":"output","Package":"m/bad","Test":"TestC","Output":"--- SKIP: TestC (0.00s)\n"}
{"Action":"skip","Package":"m/bad","Test":"TestC","Elapsed":0}
{"Action":"fail","Package":"m/bad","Elapsed":0.1}
{"Action":"output","Package":"m/dies","Test":"TestD","Output":"about to divide\n"}
{"Action":"output","Package":"m/dies","Output":"exit status 2\n"}
{"Action":"fail","Package":"m/dies","Elapsed":0.1}
{"ImportPath":"m/dep [m/dep.test]","Action":"build-output","Output":"dep.go:3: undefined: x\n"}
{"ImportPath":"m/dep [m/dep.test]","Action":"build-fail"}
{"Action":"fail","Package":"m/uses","Elapsed":0,"FailedBuild":"m/dep [m/dep.test]"}
{"Action":"skip","Package":"m/none","Elapsed":0}
go: something that is not JSON
`
	var out strings.Builder
	r, err := run(strings.NewReader(in), &out)
	if err != nil {
		t.Fatal(err)
	}
	if want := (counts{passed: 2, failed: 3, skipped: 1}); r.counts != want {
		t.Errorf("counts %+v, want %+v", r.counts, want)
	}
	const complaints = "FAILED m/bad TestB\n    b_test.go:9: is 1, want 2\nFAILED m/dies\nFAILED m/uses\n"
	if got := r.complaints.String(); got != complaints {
		t.Errorf("complaints\n%s\nwant\n%s", got, complaints)
	}
	const want = `ok m/good 0.5s
FAILED m/bad TestB
    b_test.go:9: is 1, want 2
        and what a process printed
FAILED m/bad
FAILED m/dies
exit status 2
while running m/dies TestD
about to divide
FAILED m/uses
dep.go:3: undefined: x
go: something that is not JSON
skipped m/bad TestC: c_test.go:7: no such kernel feature
`
	if out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
}

func TestAppendTo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "counts")
	for range 2 {
		if err := appendTo(file, "1 2 3\n"); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "1 2 3\n1 2 3\n" {
		t.Errorf("file holds %q, %v", got, err)
	}
}
