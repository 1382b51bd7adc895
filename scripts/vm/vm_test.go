package main

import (
	"slices"
	"strings"
	"testing"
)

// TestCompareVersions orders names as Debian does.
func TestCompareVersions(t *testing.T) {
	ordered := []string{
		"5.10.0-9-cloud-amd64", "5.10.0-32-cloud-amd64", "6.1.0-0.deb11.52-cloud-amd64", "6.1.0-50-cloud-amd64",
		"6.12.95+deb12-cloud-amd64", "6.12.107+deb13-cloud-amd64", "7.3.4+deb13-cloud-amd64",
	}
	for i := range ordered[1:] {
		if compareVersions(ordered[i], ordered[i+1]) >= 0 || compareVersions(ordered[i+1], ordered[i]) <= 0 {
			t.Errorf("%s is not before %s", ordered[i], ordered[i+1])
		}
	}
}

// judge runs what a guest might say through all that judges it.
func judge(t *testing.T, console string) result {
	t.Helper()
	var b run
	if err := b.follow(strings.NewReader(strings.ReplaceAll(console, "\n", "\r\n")), "guest-7"); err != nil {
		t.Fatal(err)
	}
	r := result{row: row{series: "5.10", arch: "amd64"}}
	if !b.done {
		r.err = errDied
		return r
	}
	r.read(&b)
	return r
}

const goodConsole = `SeaBIOS
guest-7 begin probes-1
=== RUN   TestKernel
    kernels_test.go:95: kernel: {"attach":"perf events, lookup","lacks":["uprobe_multi"],"programs":8,"release":"5.10.0"}
--- PASS: TestKernel (21.61s)
PASS

guest-7 exit probes-1 0
guest-7 begin e2e-1
    --- PASS: TestE2E/shop (1.00s)
--- PASS: TestE2E (1.00s)
guest-7 exit e2e-1 0
guest-7 done
`

// TestJudge: nothing but a guest that came to its end, with every step at 0, no test
// skipped and a kernel that was checked, is good.
func TestJudge(t *testing.T) {
	if r := judge(t, goodConsole); !r.ok() || r.passed != 3 || r.facts.Release != "5.10.0" || !slices.Equal(r.facts.Lacks, []string{"uprobe_multi"}) {
		t.Errorf("a good guest: ok %v, %+v", r.ok(), r)
	}
	for name, change := range map[string][2]string{
		"a test failed":           {"--- PASS: TestE2E/shop", "--- FAIL: TestE2E/shop"},
		"a test was skipped":      {"--- PASS: TestE2E/shop", "--- SKIP: TestE2E/shop"},
		"a step failed":           {"exit e2e-1 0", "exit e2e-1 2"},
		"a step has no end":       {"guest-7 exit e2e-1 0\n", ""},
		"a step ran no test":      {"    --- PASS: TestE2E/shop (1.00s)\n--- PASS: TestE2E (1.00s)\n", ""},
		"the kernel is unchecked": {`: kernel: {`, `: core: {`},
		"the guest died":          {"guest-7 done\n", ""},
		"somebody else's end":     {"guest-7 done\n", "guest-8 done\n"},
	} {
		bad := strings.Replace(goodConsole, change[0], change[1], 1)
		if bad == goodConsole {
			t.Fatalf("%s: nothing was changed", name)
		}
		if r := judge(t, bad); r.ok() {
			t.Errorf("%s, and all is well", name)
		}
	}
}

// TestArchive: the headers are where the kernel looks for them.
func TestArchive(t *testing.T) {
	var b strings.Builder
	a := archive{"bin/x": {data: []byte("hello")}, "init": {data: []byte("go")}}
	if err := a.write(&b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	var names []string
	for i := 0; strings.HasPrefix(text[i:], "070701"); {
		size, name := hex(t, text[i+54:i+62]), hex(t, text[i+94:i+102])
		names = append(names, text[i+110:i+110+name-1])
		i = align(align(i+110+name) + size)
		if i >= len(text) {
			break
		}
	}
	if want := []string{"bin", "bin/x", "init", "TRAILER!!!"}; !slices.Equal(names, want) {
		t.Errorf("entries %v, want %v", names, want)
	}
}

func align(n int) int { return (n + 3) &^ 3 }

func hex(t *testing.T, digits string) (n int) {
	t.Helper()
	for _, c := range digits {
		n = n<<4 + strings.IndexRune("0123456789abcdef", c)
	}
	return n
}

func TestMerged(t *testing.T) {
	const head = "| Kernel | Architecture | Tests |\n|---|---|--:|\n"
	const a, b, c = "| 5.10.0-32-cloud-amd64 | amd64 | **failed** |\n", "| 6.1.0-50 | arm64 | 20 passed |\n", "| 6.12.1 | arm64 | 20 passed |\n"
	const later = "| 5.10.0-33-cloud-amd64 | amd64 | 20 passed |\n"
	if got := merged(head+a+b, head+later+c); got != head+later+b+c {
		t.Errorf("got\n%s", got)
	}
}
