package main

import (
	"strings"
	"testing"

	"github.com/plainframework/agent/internal/probes"
)

const diagnosisText = `Host
  ok       kernel        Linux 6.18.0 x86_64
  limited  uprobe_multi  this kernel lacks it
                         → probes are perf events

/usr/bin/shop  (pids 1 2 3 4 5 and 2 more)
  would be instrumented, but not all of it
  built with go1.26.8, amd64, stripped, fixed addresses, module example.com/shop v1.2.3
  library    net/http go1.26.8: covered
  library    google.golang.org/grpc v1.84.0: not covered yet: RPCs
  telemetry  go.opentelemetry.io/otel/sdk v1.40.0: spans that the program makes itself go their own way
  cost       of a request (net/http): 2 traps (1 more at times), about 4.0 µs of CPU time on a virtual machine
  net/http server: would be seen
    nethttp_server_end  net/http.(*response).finishRequest  0x63ce04  JBE 0x63ceba  emulated  branch of the stack check; only while it pays
  database/sql DB: would not be seen
    sql_end    missing: function f is inlined into g
    sql_begin  missing: bad  name

/bin/ls
  would not be instrumented: not a Go executable

7 of the other processes: not a Go executable
1 of 2 executables would be instrumented.
`

func TestPrintDiagnosis(t *testing.T) {
	d := &probes.Diagnosis{
		Host: []probes.Check{
			{Name: "kernel", State: "ok", Found: "Linux 6.18.0 x86_64"},
			{Name: "uprobe_multi", State: "limited", Found: "this kernel lacks it", Remedy: "probes are perf events"},
		},
		Targets: []probes.TargetDiagnosis{{
			Exe: "/usr/bin/shop", PIDs: []int{1, 2, 3, 4, 5, 6, 7}, State: "partly",
			Go: "go1.26.8", Module: "example.com/shop v1.2.3", Arch: "amd64", Stripped: true,
			Libraries: []probes.LibraryFound{
				{Name: "net/http", Version: "go1.26.8", Covered: true},
				{Name: "google.golang.org/grpc", Version: "v1.84.0", Note: "not covered yet: RPCs"},
			},
			Telemetry: []probes.LibraryFound{{Name: "go.opentelemetry.io/otel/sdk", Version: "v1.40.0", Note: "spans that the program makes itself go their own way"}},
			Groups: []probes.GroupStatus{
				{Library: "net/http", Group: "server", State: "attached", Hooks: []probes.HookStatus{{
					Program: "nethttp_server_end", Function: "net/http.(*response).finishRequest", Address: "0x63ce04",
					Instruction: "JBE 0x63ceba", Emulated: true, Rule: "branch of the stack check", While: "while it pays",
				}}},
				{Library: "database/sql", Group: "DB", State: "uncovered", Hooks: []probes.HookStatus{
					{Program: "sql_end", Reason: "function f is inlined into g"},
					{Program: "sql_begin", Reason: "bad\x1b\nname"}, // a terminal must not obey
				}},
			},
			Operations: []probes.Operation{{Library: "net/http", Name: "request", Traps: 2, Sometimes: 1, CostNs: 4000}},
		}, {
			Exe: "/bin/ls", State: "refused", Reason: "not a Go executable",
		}},
		Others:      map[string]int{"not a Go executable": 7},
		Instruments: 1,
	}
	var b strings.Builder
	if err := printDiagnosis(&b, d, true); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != diagnosisText {
		t.Errorf("got:\n%s%s", got, lineDiff(diagnosisText, got))
	}
	b.Reset()
	if err := printDiagnosis(&b, d, false); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); strings.Contains(got, "0x63ce04") || !strings.Contains(got, "inlined into g") {
		t.Errorf("without sites, only what is missing is listed:\n%s", got)
	}
}
