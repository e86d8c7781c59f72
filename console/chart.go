package console

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nbena/smallben"
)

// bar is a rectangle of a drawing. Its class gives the colour.
type bar struct {
	X, Y, Width, Height int
	Class, Title        string
}

// strip shows the last runs of a job, oldest first: how each ended, and how long it
// took beside the others.
type strip struct {
	Width, Height int
	Label         string
	Bars          []bar
}

func (p *page) drawStrip(runs []smallben.Run) *strip {
	const width, gap, height, lowest = 6, 2, 24, 5
	if len(runs) == 0 {
		return nil
	}
	runs = runs[max(0, len(runs)-stripLength):]
	var longest time.Duration
	for i := range runs {
		longest = max(longest, length(&runs[i]))
	}
	s := &strip{Width: stripLength*(width+gap) - gap, Height: height}
	counts := make(map[string]int)
	for i := range runs {
		run := p.run(&runs[i])
		counts[run.Outcome.Label]++
		tall := lowest
		switch {
		case run.Outcome.Class == "failed" || run.Outcome.Class == "lost":
			tall = height // to be seen whatever its colour
		case longest > 0 && started(&runs[i]):
			tall += int(float64(height-lowest-4) * float64(length(&runs[i])) / float64(longest))
		}
		s.Bars = append(s.Bars, bar{
			X: (stripLength - len(runs) + i) * (width + gap), Y: height - tall, Width: width, Height: tall,
			Class: run.Outcome.Class, Title: strings.TrimSpace(run.Tick.Text + " " + run.Outcome.Label + " " + run.Duration),
		})
	}
	s.Label = "The last " + plural(len(runs), "run") + ": " + countWords(counts)
	return s
}

// length is how long a run took, or 0.
func length(run *smallben.Run) time.Duration {
	if !started(run) || run.End.IsZero() {
		return 0
	}
	return max(0, run.End.Sub(run.Start))
}

// countWords lists counts of outcomes in the order of outcomes.
func countWords(counts map[string]int) string {
	var items []string
	for _, o := range outcomes {
		if n := counts[o.label]; n > 0 {
			items = append(items, fmt.Sprintf("%d %s", n, o.label))
		}
	}
	return enumerate(items)
}

// chart shows how many runs ended how, over time.
type chart struct {
	Width, Height int
	Bars          []bar
	Ticks         []axisLabel
	Most          int // the height of the scale, in runs
	Label         string
	Span          string
	Partial       bool // there are older runs in the span
	Total         int
	Rows          []chartRow // the same as a table
	Legend        []outcomeView
}

type axisLabel struct {
	X    int
	Text string
}

type chartRow struct {
	From                                instant
	OK, Failed, Lost, Skipped, Unending int
}

// spans are what a chart may cover: the widest of which the runs can be counted.
var spans = []struct {
	length, step time.Duration
	name, layout string
}{
	{24 * time.Hour, 30 * time.Minute, "24 hours", "15:04"},
	{6 * time.Hour, 7*time.Minute + 30*time.Second, "6 hours", "15:04"},
	{time.Hour, 75 * time.Second, "hour", "15:04"},
	{12 * time.Minute, 15 * time.Second, "12 minutes", "15:04"},
	{2 * time.Minute, 2500 * time.Millisecond, "2 minutes", "15:04:05"},
}

// shortestWanted is the shortest span that is chosen because no run is older. Shorter
// ones are chosen only because there are too many runs.
const shortestWanted = 3

// maxCounted bounds how many runs a chart looks at.
const maxCounted = 20_000

// chart counts the runs of the last hours: of a shorter time if none is older, or if
// there are too many to be counted for a page.
func (s *source) chart(p *page) (*chart, error) {
	start := func(i int) time.Time { return p.now.Truncate(spans[i].step).Add(spans[i].step - spans[i].length) }
	for span := 0; ; {
		counts, since, err := s.scheduler.CountRuns(start(span), spans[span].step, maxCounted)
		if err != nil {
			return nil, err
		}
		partial := since.After(start(span))
		next := span
		switch {
		case partial:
			for next < len(spans)-1 && start(next).Before(since) {
				next++
			}
		default:
			oldest := p.now
			if len(counts) > 0 {
				oldest = counts[0].From
			}
			for next < shortestWanted && !start(next+1).After(oldest) {
				next++
			}
		}
		if next == span {
			return p.drawChart(counts, span, start(span), partial), nil
		}
		span = next
	}
}

func (p *page) drawChart(counts []smallben.RunCount, span int, start time.Time, partial bool) *chart {
	const height, width, gap, thinnest = 120, 14, 2, 3
	chosen := spans[span]
	columns := int(chosen.length / chosen.step)
	c := &chart{Width: columns * (width + gap), Height: height, Span: chosen.name, Partial: partial}
	classes := []string{"ok", "running", "skipped", "lost", "failed"} // from the ground up
	stacks := make([]map[string]int, columns)
	for i := range stacks {
		stacks[i] = make(map[string]int)
	}
	totals := make(map[string]int)
	for _, count := range counts {
		column := int(count.From.Sub(start) / chosen.step)
		if column < 0 || column >= columns {
			continue // a clock that is ahead
		}
		class := viewOutcome(count.Outcome).Class
		stacks[column][class] += count.Count
		totals[class] += count.Count
		c.Total += count.Count
	}
	for _, stack := range stacks {
		sum := 0
		for _, n := range stack {
			sum += n
		}
		c.Most = max(c.Most, sum)
	}
	words := map[string]string{"ok": "ok", "running": "running", "skipped": "skipped", "lost": "lost or missed", "failed": "failed"}
	for column, stack := range stacks {
		from := start.Add(time.Duration(column) * chosen.step)
		x, bottom := column*(width+gap), height
		for _, class := range classes {
			n := stack[class]
			if n == 0 {
				continue
			}
			tall := max(thinnest, n*(height-len(classes)*thinnest)/max(1, c.Most))
			bottom -= tall
			c.Bars = append(c.Bars, bar{X: x, Y: bottom, Width: width, Height: tall, Class: class,
				Title: fmt.Sprintf("%s: %d %s", from.In(p.zone).Format("Mon 15:04:05"), n, words[class])})
		}
		if len(stack) > 0 {
			c.Rows = append(c.Rows, chartRow{p.Time(from), stack["ok"], stack["failed"], stack["lost"], stack["skipped"], stack["running"]})
		}
		if column%(columns/6) == 0 {
			c.Ticks = append(c.Ticks, axisLabel{x, from.In(p.zone).Format(chosen.layout)})
		}
	}
	var items []string
	for _, class := range slices.Backward(classes) {
		if totals[class] > 0 {
			items = append(items, fmt.Sprintf("%d %s", totals[class], words[class]))
			c.Legend = append(c.Legend, outcomeView{Label: fmt.Sprintf("%d %s", totals[class], words[class]), Class: class})
		}
	}
	c.Label = "Runs of the last " + chosen.name + ": " + enumerate(items)
	return c
}
