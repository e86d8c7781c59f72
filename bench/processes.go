package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nbena/smallben"
)

// task is what a process of its own does, until it is told to stop. Without Bare,
// Member and Alone it runs a SmallBen that records.
type task struct {
	Database string
	DSN      string
	Bare     bool   // claim and finish as fast as the prototype can
	Trigger  int    // trigger as many of its jobs each second, spread over the second
	Profile  string // files for profiles, up to their extensions, if any

	Member     string // belong to a fleet of this scheduler, and report at the end when runs started
	Jobs       int    // of the fleet, or of SmallBen alone
	Expression string // of each of its jobs
	First      bool   // add them

	Alone  work          // measure this of SmallBen without a record, and report it
	Length time.Duration // for so long
}

// process is this program once more, or the one built beside an earlier SmallBen.
type process struct {
	*exec.Cmd
	input  io.Closer
	output *bufio.Reader
}

// startProcess returns when the process has begun with the task. An empty program
// is this one.
func startProcess(program string, t task) (*process, error) {
	text, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	if program == "" {
		if program, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	p := &process{Cmd: exec.Command(program, "-task", string(text))}
	p.Stderr = os.Stderr
	output, err := p.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if p.input, err = p.StdinPipe(); err != nil {
		return nil, err
	}
	if err := p.Start(); err != nil {
		return nil, err
	}
	p.output = bufio.NewReader(output)
	if _, err := p.output.ReadString('\n'); err != nil {
		return nil, errors.Join(fmt.Errorf("process %d did not begin: %w", p.Process.Pid, err), p.stop())
	}
	return p, nil
}

// stop returns when the process has recorded what it ran.
func (p *process) stop() error { return errors.Join(p.input.Close(), p.Wait()) }

// report stops the process and reads what it reports.
func (p *process) report(value any) error {
	return errors.Join(p.input.Close(), json.NewDecoder(p.output).Decode(value), p.Wait())
}

func (p *process) kill() error {
	if err := p.Process.Kill(); err != nil {
		return err
	}
	_ = p.Wait() // its death is its error
	return nil
}

// do is the other end of startProcess. The end of the parent ends it as well.
func (t *task) do() (err error) {
	db := databaseNamed(t.Database)
	if t.Profile != "" {
		end, err := profile(t.Profile)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, end()) }()
	}
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(done)
	}()
	switch {
	case t.Bare:
		return t.claim(db, done)
	case t.Member != "":
		return t.belong(done)
	case t.Alone != "":
		return t.measureAlone(db)
	}
	repository, err := smallben.NewRepositoryGorm(&smallben.RepositoryGormConfig{Dialector: db.dialector(t.DSN)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, repository.Close()) }()
	s := newRecording(repository)
	if err := s.Start(); err != nil {
		return err
	}
	defer s.Stop()
	fmt.Println("begun")
	if t.Trigger > 0 {
		return t.trigger(s, done)
	}
	<-done
	return nil
}

// profile writes a CPU profile and, at the end, one of allocations.
func profile(path string) (end func() error, err error) {
	used, err := os.Create(path + ".cpu")
	if err != nil {
		return nil, err
	}
	allocated, err := os.Create(path + ".allocs")
	if err != nil {
		return nil, err
	}
	return func() error {
		pprof.StopCPUProfile()
		return errors.Join(pprof.Lookup("allocs").WriteTo(allocated, 0), used.Close(), allocated.Close())
	}, pprof.StartCPUProfile(used)
}

// trigger triggers a hundredth of the jobs each ten milliseconds.
func (t *task) trigger(s *smallben.SmallBen, done chan struct{}) error {
	const calls = 100
	ticker := time.NewTicker(time.Second / calls)
	defer ticker.Stop()
	for call := 0; ; call++ {
		select {
		case <-done:
			return nil
		case <-ticker.C:
		}
		ids := make([]int64, t.Trigger/calls)
		for i := range ids {
			ids[i] = int64(call%calls*len(ids) + i + 1)
		}
		if err := s.TriggerJobs(&smallben.PauseResumeOptions{JobIDs: ids}); err != nil {
			return err
		}
	}
}

// cpuOf is what the processes have used, and the processes that they started.
// It is 0 where there is no /proc.
func cpuOf(pids ...int) (used time.Duration) {
	const ticksASecond = 100 // on every Linux
	paths, _ := filepath.Glob("/proc/[0-9]*")
	for _, path := range paths {
		pid, _ := strconv.Atoi(filepath.Base(path))
		stat := statOf(pid)
		if stat == nil {
			continue // it has ended
		}
		parent, _ := strconv.Atoi(stat[1])
		fields := stat[11:13] // user and system
		if slices.Contains(pids, pid) {
			fields = stat[11:15] // and those of children that have ended
		} else if !slices.Contains(pids, parent) {
			continue
		}
		for _, field := range fields {
			ticks, _ := strconv.Atoi(field)
			used += time.Duration(ticks) * time.Second / ticksASecond
		}
	}
	return used
}

// statOf is /proc/pid/stat from the state of the process on, or nil.
func statOf(pid int) []string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, text2, ok := strings.Cut(string(text), ") ")
	if !ok {
		return nil
	}
	return strings.Fields(text2)
}

// serverOf is the process of the database's server, of which all others are
// children, or 0 if there is none on this machine.
func serverOf(db *database, query func(dest ...any) error) int {
	var pid int
	if db.name != "PostgreSQL" || query(&pid) != nil {
		return 0
	}
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	stat := statOf(pid)
	if !strings.HasPrefix(string(name), "postgres") || stat == nil {
		log.Printf("PostgreSQL is on another machine: its CPU is not measured")
		return 0
	}
	parent, _ := strconv.Atoi(stat[1])
	return parent
}
