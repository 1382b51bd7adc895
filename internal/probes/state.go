package probes

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/process"
)

// State is what of an agent outlives it: maps that are pinned in a directory of a BPF
// filesystem. Links are never pinned, so a dead agent costs its targets nothing; but what
// its programs had counted, measured and put into the ring is there for the next one.
//
// The directory is locked as long as the State is open, so two agents cannot share it.
type State struct {
	log    *slog.Logger
	dir    string
	lock   *os.File // nil: no directory
	reason string   // why nothing is kept
	ledger *ledger  // nil: nothing is kept

	before    life // the agent before this one
	inherited bool // the maps are its

	attachedAt       uint64 // as sinceBoot
	crash, logsCrash uint64 // what was lost by this takeover

	binaries, cards, baselines, past *ebpf.Map
}

// life is what the ledger says of an agent.
type life struct {
	state, beat  uint64
	pid, started uint64
}

// StateOff is the directory that stands for none.
const StateOff = "off"

// ErrInUse is in the error that [OpenState] returns if another agent runs.
var ErrInUse = errors.New("another agent runs on this node")

// lockPatience is how long a predecessor that is just ending is waited for.
const lockPatience = 3 * time.Second

// OpenState locks the directory, makes it if need be, and looks what a predecessor has
// left. Where nothing can be kept there is a reason, in the log and in [Status]; the only
// errors are that another agent has the lock, and that the kernel gives no map.
func OpenState(dir string, log *slog.Logger) (*State, error) {
	s := &State{log: log, dir: dir}
	if dir == "" || dir == StateOff {
		s.reason = "switched off by PLAIN_AGENT_STATE_DIR"
		return s, nil
	}
	if err := s.takeLock(); err != nil {
		if errors.Is(err, ErrInUse) {
			return nil, err
		}
		s.keepNothing(err)
		return s, nil
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(s.lock.Fd()), &fs); err != nil || fs.Type != unix.BPF_FS_MAGIC {
		s.keepNothing(fmt.Errorf("%s is not in a BPF filesystem: mount one on /sys/fs/bpf (mount -t bpf bpf /sys/fs/bpf), or name a directory in one with PLAIN_AGENT_STATE_DIR", dir))
		return s, nil
	}
	if err := s.openLedger(); err != nil {
		s.keepNothing(err)
	}
	return s, nil
}

func (s *State) keepNothing(err error) {
	s.reason = err.Error()
	s.log.Warn("nothing is kept across a crash of the agent", "reason", err)
}

// takeLock makes the directory and locks it.
func (s *State) takeLock() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	dir, err := os.Open(s.dir)
	if err != nil {
		return fmt.Errorf("open the state directory: %w", err)
	}
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(50 * time.Millisecond) {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			s.lock = dir
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			dir.Close()
			return fmt.Errorf("lock the state directory: %w", err)
		}
		if time.Now().After(deadline) {
			dir.Close()
			return fmt.Errorf("%w%s: stop it, or give this one a state directory of its own with PLAIN_AGENT_STATE_DIR; each would send what its targets do", ErrInUse, s.holder())
		}
	}
}

// holder names the agent that has the lock, if it has said so.
func (s *State) holder() string {
	m, err := ebpf.LoadPinnedMap(s.path("ledger"), nil)
	if err != nil {
		return ""
	}
	defer m.Close()
	if m.ValueSize() != ledgerSize {
		return ""
	}
	l, err := mapLedger(m)
	if err != nil {
		return ""
	}
	return fmt.Sprintf(", process %d", l.get(wordPID))
}

func (s *State) path(name string) string { return filepath.Join(s.dir, name) }

// openLedger finds the ledger of a predecessor, or makes one, and enters this agent.
func (s *State) openLedger() error {
	m, err := s.openOwn(&ledgerSpec)
	if err != nil {
		return err
	}
	if s.ledger, err = mapLedger(m); err != nil {
		m.Close()
		return err
	}
	l := s.ledger
	s.before = life{state: l.get(wordLife), beat: l.get(wordBeat), pid: l.get(wordPID), started: l.get(wordPIDStart)}
	s.awaitEnd()
	if s.before.state != lifeRunning {
		l.clear()
	}
	l.set(wordPID, uint64(os.Getpid()))
	if p, err := process.Open(os.Getpid()); err == nil {
		l.set(wordPIDStart, p.StartTime())
		p.Close()
	}
	return nil
}

// awaitEnd waits until the kernel has taken a killed predecessor's probes out. Its lock is
// free a moment earlier.
func (s *State) awaitEnd() {
	for deadline := time.Now().Add(lockPatience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		p, err := process.Open(int(s.before.pid))
		if err != nil {
			return
		}
		same := p.StartTime() == s.before.started
		p.Close()
		if !same || s.before.pid == uint64(os.Getpid()) {
			return
		}
	}
}

// openOwn opens or makes and pins a map that only user space uses.
func (s *State) openOwn(spec *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(s.path(spec.Name), nil)
	if err == nil {
		if spec.Compatible(m) == nil {
			return m, nil
		}
		m.Close()
		_ = os.Remove(s.path(spec.Name)) // if it stays, pinning says so
	}
	return s.makeMap(spec)
}

func (s *State) makeMap(spec *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("make map %s: %w", spec.Name, err)
	}
	if err := m.Pin(s.path(spec.Name)); err != nil {
		m.Close()
		return nil, fmt.Errorf("pin map %s: %w", spec.Name, err)
	}
	return m, nil
}

// pinnedMaps are the maps of the programs that are kept.
var pinnedMaps = []string{"all_series", "context_table", "goroutine_table", "goroutines", "log_ring", "processes", "ring"}

// ownMaps are those that only user space uses. They are made as they are filled.
var ownMaps = []*ebpf.MapSpec{
	// Which executable a binary's number stands for.
	{Name: "binaries", Type: ebpf.Hash, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(binaryRecord{})), MaxEntries: maxBinaries, Flags: unix.BPF_F_NO_PREALLOC},
	// Who a process was, for when it is gone.
	{Name: "cards", Type: ebpf.Hash, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(cardRecord{})), MaxEntries: 8192, Flags: unix.BPF_F_NO_PREALLOC},
	// How far each histogram is exported.
	{Name: "baselines", Type: ebpf.Hash, KeySize: uint32(unsafe.Sizeof(bpf.AgentSeriesKey{})), ValueSize: uint32(unsafe.Sizeof(bpf.AgentHistogram{})), MaxEntries: 32768, Flags: unix.BPF_F_NO_PREALLOC},
	// What processes that are gone have counted.
	{Name: "past", Type: ebpf.Array, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(pastRecord{})), MaxEntries: 1},
}

// maps returns the maps that the programs are to be loaded with, of a predecessor if they
// fit; nil if nothing is kept. The caller closes them.
func (s *State) maps(spec *ebpf.CollectionSpec) (map[string]*ebpf.Map, error) {
	if s == nil || s.ledger == nil {
		return nil, nil
	}
	contract, err := contractOf(spec)
	if err != nil {
		return nil, err
	}
	maps := map[string]*ebpf.Map{}
	if s.before.state == lifeRunning {
		if s.ledger.get(wordContract) == contract {
			s.inherited = s.load(spec, maps)
		}
		if !s.inherited {
			s.discard()
		}
	}
	if !s.inherited {
		s.removePins()
		s.ledger.set(wordContract, contract)
		if err := s.create(spec, maps); err != nil {
			closeMaps(maps)
			s.removePins()
			s.ledger = nil
			s.keepNothing(err)
			return nil, nil
		}
	}
	if err := s.openOwnMaps(); err != nil {
		closeMaps(maps)
		return nil, err
	}
	s.ledger.set(wordBeat, sinceBoot())
	s.ledger.set(wordLife, lifeRunning)
	return maps, nil
}

// load opens the maps of a predecessor; false if one is missing or of another size.
func (s *State) load(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map) bool {
	for _, name := range pinnedMaps {
		m, err := ebpf.LoadPinnedMap(s.path(name), nil)
		if err == nil {
			maps[name] = m
			err = spec.Maps[name].Compatible(m)
		}
		if err != nil {
			s.log.Warn("what the agent before has left cannot be taken over", "map", name, "error", err)
			closeMaps(maps)
			return false
		}
	}
	return true
}

func (s *State) create(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map) error {
	for _, name := range pinnedMaps {
		m, err := s.makeMap(spec.Maps[name])
		if err != nil {
			return err
		}
		maps[name] = m
	}
	return nil
}

func closeMaps(maps map[string]*ebpf.Map) {
	for name, m := range maps {
		m.Close()
		delete(maps, name)
	}
}

func (s *State) openOwnMaps() error {
	for i, to := range []**ebpf.Map{&s.binaries, &s.cards, &s.baselines, &s.past} {
		m, err := s.openOwn(ownMaps[i])
		if err != nil {
			return err
		}
		*to = m
	}
	return nil
}

// discard counts what a predecessor has left that cannot be read: its settings of sizes,
// or its version, were others.
func (s *State) discard() {
	records := uint64(0)
	if m, err := ebpf.LoadPinnedMap(s.path("ring"), nil); err == nil {
		records = countRecords(m)
		m.Close()
	}
	series := 0
	if m, err := ebpf.LoadPinnedMap(s.path("all_series"), nil); err == nil {
		key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
		for it := m.Iterate(); it.Next(&key, &value); {
			series++
		}
		m.Close()
	}
	l := s.ledger
	kept := l.get(wordIncompatible) + records
	l.clear()
	l.set(wordIncompatible, kept)
	s.log.Warn("what the agent before has left is dropped: it was of another version, or had other sizes", "records", records, "histograms", series)
}

func (s *State) removePins() {
	names := pinnedMaps
	for _, m := range ownMaps {
		names = append(names[:len(names):len(names)], m.Name)
	}
	for _, name := range names {
		if err := os.Remove(s.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			s.log.Warn("a map stays pinned", "path", s.path(name), "error", err)
		}
	}
}

// Release unpins the maps, when all that was in them is exported or counted: the agent
// ends in good order. How long there is no agent is still known to the next one.
func (s *State) Release() {
	if s == nil || s.ledger == nil {
		return
	}
	s.ledger.clear()
	s.ledger.set(wordLife, lifeEnded)
	s.removePins()
}

// Close gives up the lock. What was not released stays for the next agent.
func (s *State) Close() error {
	if s == nil {
		return nil
	}
	var errs []error
	for _, m := range []*ebpf.Map{s.binaries, s.cards, s.baselines, s.past} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	s.binaries, s.cards, s.baselines, s.past = nil, nil, nil, nil
	if s.ledger != nil {
		errs = append(errs, s.ledger.m.Close())
		s.ledger = nil
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
		s.lock = nil
	}
	return errors.Join(errs...)
}

// Book is memory for the accounts of a signal that outlives the agent, nil if there is
// none.
func (s *State) Book(signal int) interface {
	io.ReaderAt
	io.WriterAt
} {
	if s == nil || s.ledger == nil || signal < 0 || booksAt+(signal+1)*bookSize > ledgerSize {
		return nil
	}
	return book{s.ledger, int64(booksAt + signal*bookSize)}
}

// beat notes that the agent is alive.
func (s *State) beat() {
	if s.keeps() {
		s.ledger.set(wordBeat, sinceBoot())
	}
}

// sinceBoot is the age of the machine in ns, time asleep included. The wall clock may be
// set between two agents; and what is pinned does not outlive the machine.
func sinceBoot() uint64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) // it is always there
	return uint64(now.Nano())
}

// keeps tells whether anything is kept.
func (s *State) keeps() bool { return s != nil && s.ledger != nil && s.past != nil }

// note keeps a number across a crash.
func (s *State) note(word int, n uint64) {
	if s.keeps() {
		s.ledger.set(word, n)
	}
}

// attached ends the time without an agent.
func (s *State) attached() {
	if !s.keeps() {
		return
	}
	s.attachedAt = sinceBoot()
	gap := s.unattended()
	if s.before.state != lifeNone {
		s.log.Info("there was no agent before this one", "for", gap)
	}
	s.note(wordUnattended, s.ledger.get(wordUnattended)+uint64(gap))
	s.beat()
}

// status adds the losses of agents that were killed.
func (s *State) status(losses map[string]uint64) StateStatus {
	if s == nil {
		return StateStatus{Reason: "not asked for"}
	}
	if !s.keeps() {
		return StateStatus{Reason: s.reason, Dir: s.dir}
	}
	for name, word := range map[string]int{"crash": wordCrash, "logs_crash": wordLogsCrash, "incompatible": wordIncompatible} {
		if n := s.ledger.get(word); n > 0 {
			losses[name] = n
		}
	}
	return StateStatus{
		Kept: true, Dir: s.dir, Crash: s.crash, LogsCrash: s.logsCrash, Inherited: s.inherited, Since: time.Unix(0, int64(s.ledger.get(wordSince))),
		Unattended:    s.unattended().Seconds(),
		UnattendedAll: time.Duration(s.ledger.get(wordUnattended)).Seconds(),
	}
}
