package probes

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"

	"github.com/plainframework/agent/internal/probes/gobin"
	"github.com/plainframework/agent/internal/probes/process"
)

// Wanted is what a dry run looks at besides the host.
type Wanted struct {
	PIDs []int
	Exes []string
	All  bool // every process that runs
}

// Diagnosis is what the agent would do here: the host, and each executable that was
// asked for. Field names are an interface: `agent doctor --json` prints it.
type Diagnosis struct {
	Host    []Check           `json:"host"`
	Targets []TargetDiagnosis `json:"targets"`
	// Others counts processes of All that run no Go program that could be read, by reason.
	Others map[string]int `json:"others,omitempty"`
	// Instruments is how many of the targets would be instrumented: none where the host
	// forbids it.
	Instruments int `json:"instruments"`

	options Options
}

// TargetDiagnosis is one executable, and the processes that run it.
type TargetDiagnosis struct {
	Exe  string `json:"exe"`
	PIDs []int  `json:"pids,omitempty"`
	// State is instrumented, partly (something of it is uncovered) or refused.
	State  string `json:"state"`
	Reason string `json:"reason,omitempty"` // of refused

	Go       string `json:"go,omitempty"`
	Module   string `json:"module,omitempty"` // main module with its version
	Arch     string `json:"arch,omitempty"`
	Stripped bool   `json:"stripped"`
	PIE      bool   `json:"pie"`

	Libraries []LibraryFound `json:"libraries,omitempty"`
	// Telemetry is what reports on the program from inside.
	Telemetry  []LibraryFound `json:"telemetry,omitempty"`
	Groups     []GroupStatus  `json:"groups,omitempty"`
	Operations []Operation    `json:"operations,omitempty"`

	// NotSelected are processes that the settings leave out, by reason.
	NotSelected map[string][]int `json:"not_selected,omitempty"`

	examined bool
}

// LibraryFound is a library that is linked into an executable.
type LibraryFound struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"` // "" where the build does not say
	Covered bool   `json:"covered"`
	Note    string `json:"note,omitempty"`
}

// Diagnose is a dry run: programs are loaded, nothing is attached. It looks at files and
// processes with the privileges that the agent would have then.
func Diagnose(o Options, wanted Wanted, log *slog.Logger) (*Diagnosis, error) {
	d := &Diagnosis{Targets: []TargetDiagnosis{}}
	w, err := process.NewWatcher()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	allowed := d.host(o, log)
	d.options = o
	if allowed && o.Rules.Any() && o.Rules.OfPods() {
		d.Host = append(d.Host, Check{Name: "rules", State: checkLimited, Found: "they ask for pods, of which a dry run knows nothing",
			Remedy: "targets are shown as if every rule chose them; /status of a running agent tells which are"})
	}
	byFile := map[process.FileID]int{}
	for _, pid := range wanted.PIDs {
		d.process(byFile, pid, true)
	}
	for _, path := range wanted.Exes {
		d.path(w, byFile, path)
	}
	if wanted.All {
		d.everything(w, byFile)
	}
	for i := range d.Targets {
		d.Targets[i].unselected()
		if allowed && d.Targets[i].State != stateRefused {
			d.Instruments++
		}
	}
	return d, nil
}

// States of a TargetDiagnosis.
const (
	stateInstrumented = "instrumented"
	statePartly       = "partly"
	stateRefused      = "refused"
)

// process looks at the executable of a process, once for all processes that run it.
// Processes that were not asked for by number are only counted if they are of no interest.
func (d *Diagnosis) process(byFile map[process.FileID]int, pid int, asked bool) {
	p, err := process.Open(pid)
	if err != nil {
		if asked {
			d.Targets = append(d.Targets, TargetDiagnosis{PIDs: []int{pid}, State: stateRefused, Reason: err.Error()})
		} else if !errors.Is(err, process.ErrGone) && !errors.Is(err, process.ErrKernelThread) {
			d.other(err.Error())
		}
		return
	}
	defer p.Close()
	i, known := byFile[p.ExeID()]
	if !known {
		t := examineTarget(p.ExePath(), p.ExeID(), p.Exe())
		if !asked && !t.examined && isOther(t.Reason) {
			byFile[p.ExeID()] = -1
			d.other(t.Reason)
			return
		}
		i = len(d.Targets)
		byFile[p.ExeID()] = i
		d.Targets = append(d.Targets, t)
	}
	if i < 0 {
		d.other(gobin.ErrNotGo.Error())
		return
	}
	t := &d.Targets[i]
	if slices.Contains(t.PIDs, pid) {
		return
	}
	t.PIDs = append(t.PIDs, pid)
	if reason := d.leftOut(p); reason != "" {
		if t.NotSelected == nil {
			t.NotSelected = map[string][]int{}
		}
		t.NotSelected[reason] = append(t.NotSelected[reason], pid)
	}
}

// leftOut is why the settings do not select a process, "" if they do or do not say.
func (d *Diagnosis) leftOut(p *process.Process) string {
	o := &d.options
	if !o.Rules.Any() || o.Rules.OfPods() || slices.Contains(o.PIDs, p.PID()) || slices.Contains(o.Exes, p.ExePath()) {
		return ""
	}
	facts := factsOf(p)
	_, reason := o.Rules.Choose(&facts)
	return reason
}

// unselected refuses a target of which no process is selected.
func (t *TargetDiagnosis) unselected() {
	left := 0
	for reason, pids := range t.NotSelected {
		left += len(pids)
		if left == len(t.PIDs) && t.State != stateRefused {
			t.State, t.Reason = stateRefused, reason
		}
	}
}

// isOther tells whether a refusal says no more than that this is no Go program.
func isOther(reason string) bool {
	return reason == gobin.ErrNotGo.Error() || reason == gobin.ErrNotELF.Error() || reason == gobin.Err32Bit.Error()
}

func (d *Diagnosis) other(reason string) {
	if d.Others == nil {
		d.Others = map[string]int{}
	}
	if _, known := d.Others[reason]; !known && len(d.Others) >= 20 {
		reason = "other reasons"
	}
	d.Others[reason]++
}

// path looks at a file.
func (d *Diagnosis) path(w *process.Watcher, byFile map[process.FileID]int, path string) {
	refused := func(err error) {
		d.Targets = append(d.Targets, TargetDiagnosis{Exe: path, State: stateRefused, Reason: err.Error()})
	}
	id, err := process.Stat(path)
	if err != nil {
		refused(err)
		return
	}
	if _, known := byFile[id]; known {
		return
	}
	f, err := os.Open(path)
	if err != nil {
		refused(process.Denied(err))
		return
	}
	defer f.Close()
	t := examineTarget(path, id, f)
	if running, err := w.FindByExe(id); err == nil { // without, it is only not told who runs it
		for _, r := range running {
			t.PIDs = append(t.PIDs, r.PID)
		}
	}
	byFile[id] = len(d.Targets)
	d.Targets = append(d.Targets, t)
}

// everything looks at all processes.
func (d *Diagnosis) everything(w *process.Watcher, byFile map[process.FileID]int) {
	running, err := w.Scan()
	if err != nil {
		d.Host = append(d.Host, Check{Name: "processes", State: checkLimited, Found: err.Error()})
	}
	for _, r := range running {
		if i, known := byFile[r.Exe]; !known && len(byFile) >= maxBinaries*16 {
			d.other("more executables than are looked at")
		} else if known && i < 0 {
			d.other(gobin.ErrNotGo.Error())
		} else {
			d.process(byFile, r.PID, false)
		}
	}
}

// examineTarget says of one executable what the agent would do with it.
func examineTarget(path string, id process.FileID, exe *os.File) TargetDiagnosis {
	t := TargetDiagnosis{Exe: path, State: stateRefused}
	if isSelf(id) {
		t.Reason, t.examined = errSelf.Error(), true
		return t
	}
	size, err := exe.Seek(0, io.SeekEnd)
	if err != nil {
		t.Reason = err.Error()
		return t
	}
	x, err := Examine(exe, size, false)
	if err != nil {
		t.Reason = err.Error()
		return t
	}
	t.examined = true
	b := x.Binary
	t.Go, t.Arch, t.Stripped, t.PIE = b.GoVersion().String(), b.Arch().String(), b.Stripped(), b.PIE()
	if info := b.BuildInfo(); info != nil && info.Main.Path != "" {
		t.Module = info.Main.Path + " " + info.Main.Version
	}
	t.Groups = x.Groups
	t.Operations = operationsOf(x.Groups)
	t.Libraries, t.Telemetry = librariesOf(b, x.Groups)
	t.State = stateOf(x.Groups)
	if t.State == stateRefused {
		t.Reason = (&executable{groups: x.Groups}).nothing().Error()
	}
	return t
}

func stateOf(groups []GroupStatus) string {
	covered, uncovered := 0, 0
	for _, g := range groups {
		if g.State == groupAttached {
			covered++
		} else {
			uncovered++
		}
	}
	switch {
	case covered == 0:
		return stateRefused
	case uncovered > 0:
		return statePartly
	}
	return stateInstrumented
}
