package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"
)

// goals are those of works on 30,000 jobs, in seconds.
var goals = map[work]float64{
	starting: .7, renumbering: .7, pausing: .4, resuming: .7, deleting: .3, listing: .35, updating: 1.5,
}

const (
	goalJobs   = 30_000
	goalAdd    = 2.5 // times GORM's bare insert
	goalGrowth = 4.5 // from 30,000 to 100,000 jobs
	goalHeap   = 600 // bytes
	goalP99    = 20  // ms
	goalRun    = 3   // µs
	goalIdle   = 1   // % of a core

	goalFleetCPU = 1.5 // ten processes to one
	goalFleetP99 = 2.0
)

type printer struct {
	w io.Writer
	o *options
	r results
}

func (p *printer) head() {
	p.printf("%s, %s, GOMAXPROCS %d, %s, medians of rounds: %d\n",
		time.Now().UTC().Format(time.DateOnly), processor(), runtime.GOMAXPROCS(0), runtime.Version(), p.o.rounds)
}

func (p *printer) databases() {
	for _, db := range databases(p.r) {
		p.works(db)
		p.growth(db)
	}
	p.heaps()
}

func (p *printer) printf(format string, args ...any) { fmt.Fprintf(p.w, format, args...) }

// table begins one, under a title.
func (p *printer) table(title string, columns ...string) {
	p.printf("\n%s\n\n| %s |\n|%s|\n", title, strings.Join(columns, " | "), strings.Repeat(" --- |", len(columns)-1)+" ---")
}

func (p *printer) row(cells ...string) { p.printf("| %s |\n", strings.Join(cells, " | ")) }

func (p *printer) seconds(c cell) string {
	value, ok := p.r.median(c)
	switch {
	case !ok:
		return "–"
	case value < .01:
		return fmt.Sprintf("%.2f ms", value*1e3)
	}
	return fmt.Sprintf("%.3f s", value)
}

func met(ok bool) string {
	if ok {
		return "yes"
	}
	return "**no**"
}

// works is a database's table, SmallBen beside the bare database.
func (p *printer) works(db *database) {
	head := []string{"work"}
	for _, s := range db.subjects {
		head = append(head, s.name)
	}
	p.table(fmt.Sprintf("%s, %s jobs", db.name, thousands(p.o.n)), append(head, "to the fastest bare", "goal", "met")...)
	for _, w := range life {
		line := []string{string(w)}
		fastest := 0.0
		for _, s := range db.subjects {
			c := cell{db.name, s.name, w, p.o.n}
			line = append(line, p.seconds(c))
			if value, ok := p.r.median(c); ok && s.name != "SmallBen" && (fastest == 0 || value < fastest) {
				fastest = value
			}
		}
		ours, _ := p.r.median(cell{db.name, "SmallBen", w, p.o.n})
		ratio := "–"
		if fastest > 0 {
			ratio = fmt.Sprintf("× %.1f", ours/fastest)
		}
		goal, ok := "works", true
		if limit, limited := goals[w]; limited {
			limit *= float64(p.o.n) / goalJobs
			goal, ok = fmt.Sprintf("%.2f s", limit), ours <= limit
		}
		if w == adding {
			gorm, _ := p.r.median(cell{db.name, "GORM", w, p.o.n})
			goal, ok = fmt.Sprintf("× %.1f of GORM; × %.1f", goalAdd, ours/gorm), ours <= goalAdd*gorm
		}
		p.row(append(line, ratio, goal, met(ok))...)
	}
}

// growth is what more jobs cost.
func (p *printer) growth(db *database) {
	if p.o.big <= p.o.n {
		return
	}
	head := []string{"work", "SmallBen, " + thousands(p.o.big)}
	for _, s := range db.subjects {
		head = append(head, s.name+" grows")
	}
	p.table(fmt.Sprintf("%s, from %s to %s jobs (× %.1f)", db.name, thousands(p.o.n), thousands(p.o.big), float64(p.o.big)/float64(p.o.n)),
		append(head, "goal", "met")...)
	for _, w := range life {
		line := []string{string(w), p.seconds(cell{db.name, "SmallBen", w, p.o.big})}
		ours := 0.0
		for _, s := range db.subjects {
			few, ok := p.r.median(cell{db.name, s.name, w, p.o.n})
			many, _ := p.r.median(cell{db.name, s.name, w, p.o.big})
			if !ok {
				line = append(line, "–")
				continue
			}
			line = append(line, fmt.Sprintf("× %.1f", many/few))
			if s.name == "SmallBen" {
				ours = many / few
			}
		}
		p.row(append(line, fmt.Sprintf("× %.1f", goalGrowth), met(ours <= goalGrowth))...)
	}
}

func (p *printer) heaps() {
	p.table("Heap for each job, with its database", "jobs", "SQLite, added", "SQLite, started", "PostgreSQL, added", "PostgreSQL, started", "goal", "met")
	for _, n := range p.o.sizes() {
		line, ok := []string{thousands(n)}, true
		for _, place := range []string{"SQLite", "PostgreSQL"} {
			for _, w := range []work{heapAdded, heapStarted} {
				value, _ := p.r.median(cell{place, "SmallBen", w, n})
				line = append(line, fmt.Sprintf("%.0f B", value))
				ok = ok && value <= goalHeap
			}
		}
		if n >= p.o.n {
			p.row(append(line, fmt.Sprintf("%d B", goalHeap), met(ok))...)
		}
	}
}

func (p *printer) reads() {
	p.table(fmt.Sprintf("Reads during one AddJobs of %s", thousands(max(p.o.big, p.o.n))), "read", "database", "at rest, median", "slowest", "during AddJobs, median", "slowest")
	for _, place := range []string{"SQLite", "PostgreSQL"} {
		for _, w := range []work{listingSome, readingSome, scraping} {
			rest, write := cell{place, atRest, w, p.o.n}, cell{place, inWrite, w, p.o.n}
			p.row(string(w), place, p.seconds(rest), milliseconds(p.r.slowest(rest)), p.seconds(write), milliseconds(p.r.slowest(write)))
		}
	}
}

func milliseconds(seconds float64) string { return fmt.Sprintf("%.1f ms", seconds*1e3) }

func (p *printer) memory() {
	p.table(fmt.Sprintf("In memory, %s jobs", thousands(p.o.n)), "scheduler", string(addingInMem), string(removingHalf), string(heapInMem))
	for _, c := range contenders {
		bytes, _ := p.r.median(cell{memory, c.name, heapInMem, p.o.n})
		p.row(c.name, p.seconds(cell{memory, c.name, addingInMem, p.o.n}), p.seconds(cell{memory, c.name, removingHalf, p.o.n}), fmt.Sprintf("%.0f B", bytes))
	}
}

func (p *printer) firing() {
	n := p.o.scaled(firingJobs)
	p.table(fmt.Sprintf("%s jobs, each every second", thousands(n)), "scheduler", string(runsSeen), string(median), string(p99), string(cpuRun), string(heapRan))
	for _, c := range contenders {
		line := []string{c.name}
		for _, w := range []work{runsSeen, median, p99, cpuRun, heapRan} {
			format := "%.1f"
			if w == heapRan {
				format = "%.0f"
			}
			line = append(line, p.number(cell{memory, c.name, w, n}, format))
		}
		if _, ok := p.r.median(cell{memory, c.name, runsSeen, n}); ok {
			p.row(line...)
		}
	}
	if n != firingJobs {
		return // the goals are for as many
	}
	late, _ := p.r.median(cell{memory, "SmallBen", p99, n})
	used, _ := p.r.median(cell{memory, "SmallBen", cpuRun, n})
	p.printf("\nGoals: p99 at most %d ms: %s; CPU at most %d µs a run: %s.\n", goalP99, met(late <= goalP99), goalRun, met(used <= goalRun))
}

func (p *printer) idle() {
	n := p.o.scaled(idleJobs)
	used, _ := p.r.median(cell{memory, "SmallBen", idleCPU, n})
	p.printf("\n%s jobs spread over a day: %.2f %% of a core. Goal: under %d %%: %s.\n", thousands(n), used, goalIdle, met(used < goalIdle))
}

// number is a dash if nothing was measured.
func (p *printer) number(c cell, format string) string {
	if value, ok := p.r.median(c); ok {
		return fmt.Sprintf(format, value)
	}
	return "–"
}

func (p *printer) recording() {
	for _, db := range databases(p.r) {
		p.table(fmt.Sprintf("%s, runs recorded for %v each", db.name, p.o.record),
			"due each second", "processes", string(recorded), string(aSecond), string(median), string(p99), string(cpuRun), string(cpuServer))
		for _, l := range p.o.loads(db.name) {
			line := []string{thousands(l.rate), l.String()}
			for _, w := range []work{recorded, aSecond, median, p99, cpuRun, cpuServer} {
				line = append(line, p.number(l.cell(db.name, w), "%.1f"))
			}
			if _, ok := p.r.median(l.cell(db.name, recorded)); ok {
				p.row(line...)
			}
		}
		for _, processes := range []int{1, 3} {
			if p.o.quick() {
				break
			}
			p.printf("\nThe prototype, processes: %d: %s runs a second.", processes, p.number(load{processes: processes}.cell(db.name, bareRuns), "%.0f"))
		}
		p.printf("\n")
	}
	p.table("The record beside the runs", "", "SQLite", "PostgreSQL", "goal")
	both := func(name, subject string, w work, n int, format, goal string) {
		if _, ok := p.r.median(cell{"PostgreSQL", subject, w, n}); ok {
			p.row(name, p.number(cell{"SQLite", subject, w, n}, format), p.number(cell{"PostgreSQL", subject, w, n}, format), goal)
		}
	}
	for _, subject := range []string{starts, firstStarts, recordingOn} {
		both(fmt.Sprintf("Start of %s jobs, %s", thousands(max(p.o.n, p.o.big)), subject), subject, starting, max(p.o.n, p.o.big), "%.3f s", "–")
	}
	both(string(nextTick), recordingOn, nextTick, p.o.scaled(takeoverRate), "%.3f s", "at once")
	both(string(ticksGone), recordingOn, ticksGone, p.o.scaled(takeoverRate), "%.0f", "0")
	both(string(lostMark), recordingOn, lostMark, p.o.scaled(takeoverRate), "%.1f s", "20 s")
	both(string(statements), recordingOn, statements, p.o.scaled(idleJobs), "%.1f", "–")
	both("CPU of an idle process, % of a core", recordingOn, idleCPU, p.o.scaled(idleJobs), "%.2f", "–")
	both("CPU of its server, % of a core", recordingOn, idleServer, p.o.scaled(idleJobs), "%.2f", "–")
}

func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}

// processor is its name, where the system tells.
func processor() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(info)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// fleets are the tables of all fleets: with one process and with more, and what
// they do beside the runs.
func (p *printer) fleets() {
	verdict := ""
	p.table("Fleets on one PostgreSQL", "scheduler", "processes", "due each second", string(recorded), string(again),
		string(median), string(p99), string(cpuRun), string(cpuServer), string(cpuBoth), "CPU, to one", "p99, to one")
	for _, f := range p.o.fleets() {
		n := p.o.scaled(f.rate)
		ratio := func(processes int, w work) (float64, string) {
			one, known := p.r.median(f.cell(1, w, n))
			value, ok := p.r.median(f.cell(processes, w, n))
			if !known || !ok {
				return 0, "–"
			}
			return value / one, fmt.Sprintf("× %.1f", value/one)
		}
		for _, processes := range p.o.counts() {
			if _, ok := p.r.median(f.cell(processes, recorded, n)); !ok {
				continue
			}
			line := []string{f.name, fmt.Sprint(processes), thousands(n)}
			for _, w := range []work{recorded, again, median, p99, cpuRun, cpuServer, cpuBoth} {
				line = append(line, p.number(f.cell(processes, w, n), "%.0f"))
			}
			used, usedText := ratio(processes, cpuBoth)
			late, lateText := ratio(processes, p99)
			p.row(append(line, usedText, lateText)...)
			if f.name == subjectNow && processes == idleFleet && used > 0 {
				verdict = fmt.Sprintf("\nGoals of %d processes, to one: CPU at most × %.1f: %s; p99 at most × %.0f: %s.\n",
					processes, goalFleetCPU, met(used <= goalFleetCPU), goalFleetP99, met(late <= goalFleetP99))
			}
		}
	}
	p.printf("%s", verdict)
	if p.o.quick() {
		return
	}
	fleets := p.o.fleets()
	head := []string{""}
	for _, f := range fleets {
		head = append(head, f.name)
	}
	p.table("Fleets beside the runs", head...)
	row := func(w work, processes int, jobs func(fleet) int, format string) {
		full := jobs(fleets[0])
		line, measured := []string{fmt.Sprintf("%s (%s jobs, processes: %d)", w, thousands(full), processes)}, false
		for _, f := range fleets {
			n := jobs(f)
			value := p.number(f.cell(processes, w, n), format)
			_, ok := p.r.median(f.cell(processes, w, n))
			if ok && n != full {
				value += fmt.Sprintf(" (%s jobs)", thousands(n))
			}
			line, measured = append(line, value), measured || ok
		}
		if measured {
			p.row(line...)
		}
	}
	burst := func(fleet) int { return p.o.scaled(burstJobs) }
	rate := func(f fleet) int { return p.o.scaled(f.rate) }
	idle := func(f fleet) int { return p.o.scaled(f.idle) }
	row(burstP50, 1, burst, "%.0f")
	row(burstP99, 1, burst, "%.0f")
	row(killLate, killFleet, rate, "%.2f")
	row(killGone, killFleet, rate, "%.0f")
	row(fleetAsks, idleFleet, idle, "%.1f")
	row(fleetCPU, idleFleet, idle, "%.1f")
}

// house is SmallBen without a record of runs, beside an earlier one if there is one.
func (p *printer) house() {
	p.table("SmallBen without a record of runs", "", "jobs", "before", "now", "now to before")
	row := func(title, place string, w work, shown, n int, format string) {
		now, ok := p.r.median(cell{place, subjectNow, w, n})
		if !ok {
			return
		}
		ratio := "–"
		if old, ok := p.r.median(cell{place, subjectBefore, w, n}); ok {
			ratio = fmt.Sprintf("× %.2f", now/old)
		}
		p.row(title, thousands(shown), p.number(cell{place, subjectBefore, w, n}, format), fmt.Sprintf(format, now), ratio)
	}
	for _, w := range []work{median, p99, cpuRun} {
		row("due each second: "+string(w), memory, w, p.o.scaled(firingJobs), p.o.n, "%.1f")
	}
	row(string(bytesJob)+", with an input of two keys", memory, bytesJob, p.o.n, p.o.n, "%.0f")
	for _, db := range databases(p.r) {
		for _, w := range []work{firstStart, nextStart} {
			row(db.name+": "+string(w), db.name, w, p.o.started(), p.o.started(), "%.2f")
		}
	}
}
