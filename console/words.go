package console

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

// expression is a cron expression, taken apart to be put into words. It knows no
// more than it needs for that: whether an expression is accepted, and when it fires,
// is SmallBen's to say.
type expression struct {
	zone  string        // as it is named, or ""
	every time.Duration // of @every, or 0
	at    time.Time     // of @at, or zero

	// Otherwise these are set.
	second, minute, hour, day, month, weekday field
}

// field is what a field of an expression selects: a bit for each value.
type field struct {
	bits uint64
	// star says that the field has a * or ? without a step. If neither day nor
	// weekday has one, a date needs to match one of the two only.
	star bool
}

// bounds are the values that a field may have, and their names.
type bounds struct {
	min, max int
	names    []string // of min and the values after it
}

var (
	seconds    = bounds{0, 59, nil}
	minutes    = bounds{0, 59, nil}
	hours      = bounds{0, 23, nil}
	days       = bounds{1, 31, nil}
	months     = bounds{1, 12, []string{"January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"}}
	weekdays   = bounds{0, 6, []string{"Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"}}
	weekOrder  = []int{1, 2, 3, 4, 5, 6, 0}
	shortcuts  = map[string]string{"@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *"}
	fieldOrder = []bounds{seconds, minutes, hours, days, months, weekdays}
)

// Lists that are longer than these say less than the expression itself.
const (
	maxTimes = 6  // times of the day
	maxItems = 12 // of any other list
)

// parse takes an expression apart. It reports whether it understood all of it.
func parse(text string) (*expression, bool) {
	e := &expression{}
	text = strings.TrimSpace(text)
	if strings.HasPrefix(text, "TZ=") || strings.HasPrefix(text, "CRON_TZ=") {
		end := strings.IndexFunc(text, isSpace)
		if end < 0 {
			return nil, false
		}
		_, e.zone, _ = strings.Cut(text[:end], "=")
		text = strings.TrimSpace(text[end:])
	}
	if rest, ok := strings.CutPrefix(text, "@every "); ok {
		every, err := time.ParseDuration(strings.TrimSpace(rest))
		e.every = every.Truncate(time.Second)
		return e, err == nil && e.every > 0
	}
	if rest, ok := strings.CutPrefix(text, "@at "); ok {
		at, err := time.Parse(time.RFC3339, strings.TrimSpace(rest))
		e.at = at
		return e, err == nil
	}
	if same, ok := shortcuts[text]; ok {
		text = same
	}
	fields := strings.FieldsFunc(text, isSpace)
	if len(fields) == len(fieldOrder)-1 {
		fields = append([]string{"0"}, fields...)
	}
	if len(fields) != len(fieldOrder) {
		return nil, false
	}
	for i, to := range []*field{&e.second, &e.minute, &e.hour, &e.day, &e.month, &e.weekday} {
		var ok bool
		if *to, ok = fieldOrder[i].parse(fields[i]); !ok {
			return nil, false
		}
	}
	return e, true
}

func isSpace(r rune) bool { return r == ' ' || r >= '\t' && r <= '\r' }

// parse reads a list of ranges: *, a, a-b, each with a step or without.
func (b bounds) parse(text string) (f field, ok bool) {
	for item := range strings.SplitSeq(text, ",") {
		span, stepText, hasStep := strings.Cut(item, "/")
		step := 1
		if hasStep {
			var err error
			if step, err = strconv.Atoi(stepText); err != nil || step < 1 {
				return field{}, false
			}
		}
		first, last := b.min, b.max
		if span == "*" || span == "?" {
			f.star = f.star || step == 1
		} else {
			from, to, isRange := strings.Cut(span, "-")
			if first, ok = b.value(from); !ok {
				return field{}, false
			}
			switch {
			case isRange:
				if last, ok = b.value(to); !ok {
					return field{}, false
				}
			case !hasStep:
				last = first
			}
			if first > last {
				return field{}, false
			}
		}
		for value := first; value <= last; value += step {
			f.bits |= 1 << (value % b.size())
		}
	}
	return f, f.bits != 0
}

// size makes 7 the Sunday that 0 is; no other field has a value that is as large.
func (b bounds) size() int {
	if b.max == weekdays.max {
		return 7
	}
	return 64
}

// value reads a number or the first three letters of a name.
func (b bounds) value(text string) (int, bool) {
	for i, name := range b.names {
		if strings.EqualFold(text, name[:3]) {
			return b.min + i, true
		}
	}
	value, err := strconv.Atoi(text)
	most := b.max
	if b.size() == 7 {
		most = 7
	}
	return value, err == nil && value >= b.min && value <= most && text[0] != '+'
}

func (b bounds) all() uint64 {
	var all uint64
	for value := b.min; value <= b.max; value++ {
		all |= 1 << value
	}
	return all
}

func (b bounds) full(f field) bool { return f.bits == b.all() }

func (f field) values() (values []int) {
	for value := range 64 {
		if f.bits>>value&1 == 1 {
			values = append(values, value)
		}
	}
	return values
}

func (f field) has(value int) bool { return f.bits>>value&1 == 1 }

// selects reports whether the wall time of t is one that the expression selects.
func (e *expression) selects(t time.Time) bool {
	if !e.second.has(t.Second()) || !e.minute.has(t.Minute()) || !e.hour.has(t.Hour()) || !e.month.has(int(t.Month())) {
		return false
	}
	day, weekday := e.day.has(t.Day()), e.weekday.has(int(t.Weekday()))
	if e.day.star || e.weekday.star {
		return day && weekday
	}
	return day || weekday
}

// words puts an expression into words, without its zone. It returns "" where it does
// not understand the expression, or where words would be longer than they are good
// for.
func words(text string) string {
	e, ok := parse(text)
	if !ok {
		return ""
	}
	switch {
	case e.every > 0:
		return "every " + spell(e.every) + ", counted from when it was added"
	case !e.at.IsZero():
		return "once, on " + e.at.Format("2 January 2006 at 15:04:05 (UTC-07:00)")
	}
	clock, listed := e.clockWords()
	dates, ok := e.dateWords()
	if clock == "" || !ok {
		return ""
	}
	if dates == "" && listed {
		dates = " every day"
	}
	return clock + dates
}

// spell writes a duration of whole seconds.
func spell(d time.Duration) string {
	var parts []string
	for _, unit := range []struct {
		name string
		size time.Duration
	}{{"day", 24 * time.Hour}, {"hour", time.Hour}, {"minute", time.Minute}, {"second", time.Second}} {
		n := d / unit.size
		d %= unit.size
		switch {
		case n == 1 && d == 0 && len(parts) == 0:
			return unit.name
		case n > 0:
			parts = append(parts, plural(int(n), unit.name))
		}
	}
	return strings.Join(parts, " ")
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// clockWords says at which times of a day. listed says that each of them is named.
func (e *expression) clockWords() (text string, listed bool) {
	secs, mins, hrs := e.second.values(), e.minute.values(), e.hour.values()
	switch {
	case len(secs) > 1 || len(mins) > 1 && secs[0] != 0:
		return e.secondWords(secs, hrs), false
	case len(mins) > 1 && len(mins)*len(hrs) > maxTimes:
		return e.minuteWords(mins, hrs), false
	case len(mins) == 1 && hours.full(e.hour):
		return "every hour at " + pastHour(mins[0], secs[0]), false
	}
	var times []string
	for _, hour := range hrs {
		for _, minute := range mins {
			times = append(times, clockTime(hour, minute, secs[0]))
		}
	}
	if len(times) > maxTimes {
		last := len(times) - 1
		step := evenly(hrs)
		switch {
		case step == 1:
			return "every hour from " + times[0] + " to " + times[last], false
		case step > 1:
			return fmt.Sprintf("every %d hours from %s to %s", step, times[0], times[last]), false
		case len(times) > maxItems:
			return "", false
		}
	}
	return "at " + enumerate(times), true
}

// minuteWords says in which minutes, of which there are several.
func (e *expression) minuteWords(mins, hrs []int) string {
	step := evenly(mins)
	last := mins[len(mins)-1]
	ofHours := true // the words need an hour to belong to
	var text string
	switch {
	case minutes.full(e.minute):
		text, ofHours = "every minute", false
	case mins[0] == 0 && step > 0 && 60%step == 0 && last+step == 60 && len(mins) > 2:
		text, ofHours = fmt.Sprintf("every %d minutes", step), false
	case step == 1 && len(mins) > 2:
		text = fmt.Sprintf("every minute from %s to %s", pastHour(mins[0], 0), pastHour(last, 0))
	case step > 1 && len(mins) > 3:
		text = fmt.Sprintf("every %d minutes from %s to %s", step, pastHour(mins[0], 0), pastHour(last, 0))
	case len(mins) <= maxItems:
		list := make([]string, len(mins))
		for i, minute := range mins {
			list[i] = pastHour(minute, 0)
		}
		text = "at " + enumerate(list)
	default:
		return ""
	}
	switch {
	case hours.full(e.hour) && ofHours:
		return text + " of every hour"
	case hours.full(e.hour):
		return text
	case evenly(hrs) == 1 || len(hrs) == 1:
		if ofHours && len(hrs) > 1 {
			text += " of every hour,"
		} else if ofHours {
			return "" // few enough to be listed, or odd
		}
		return text + " from " + clockTime(hrs[0], mins[0], 0) + " to " + clockTime(hrs[len(hrs)-1], last, 0)
	case len(hrs) <= maxItems:
		list := make([]string, len(hrs))
		for i, hour := range hrs {
			list[i] = fmt.Sprintf("%02d", hour)
		}
		return text + " of the hours " + enumerate(list)
	}
	return ""
}

// secondWords says in which seconds, of which there are several or other ones than
// the first.
func (e *expression) secondWords(secs, hrs []int) string {
	if !minutes.full(e.minute) {
		return ""
	}
	step := evenly(secs)
	last := secs[len(secs)-1]
	var text string
	switch {
	case seconds.full(e.second):
		text = "every second"
	case secs[0] == 0 && step > 0 && 60%step == 0 && last+step == 60 && len(secs) > 2:
		text = fmt.Sprintf("every %d seconds", step)
	case len(secs) == 1:
		text = fmt.Sprintf("every minute at second %d", secs[0])
	case len(secs) <= maxTimes:
		list := make([]string, len(secs))
		for i, second := range secs {
			list[i] = strconv.Itoa(second)
		}
		text = "at the seconds " + enumerate(list) + " of every minute"
	default:
		return ""
	}
	switch {
	case hours.full(e.hour):
		return text
	case evenly(hrs) == 1 || len(hrs) == 1:
		return text + " from " + fmt.Sprintf("%02d:00:%02d", hrs[0], secs[0]) + " to " + fmt.Sprintf("%02d:59:%02d", hrs[len(hrs)-1], last)
	}
	return ""
}

// dateWords says on which dates, with a space before; "" is each. It reports whether
// there are words for it.
func (e *expression) dateWords() (string, bool) {
	everyDay := days.full(e.day) && weekdays.full(e.weekday)
	if !e.day.star && !e.weekday.star {
		everyDay = days.full(e.day) || weekdays.full(e.weekday)
	}
	var text string
	switch {
	case everyDay:
	case weekdays.full(e.weekday):
		text = " on " + dayWords(e.day.values())
	case days.full(e.day):
		text = " on " + weekdayWords(e.weekday)
	default:
		text = " on " + dayWords(e.day.values()) + " and on every " + weekdayWords(e.weekday)
	}
	if bits.OnesCount64(e.day.bits) > maxItems && strings.Contains(text, "of the month") && !collapses(e.day.values()) {
		return "", false
	}
	if !months.full(e.month) {
		var items []string
		for _, run := range runs(e.month.values()) {
			items = append(items, months.span(run))
		}
		text += " in " + enumerate(items)
	}
	return text, true
}

// collapses reports whether values are few runs.
func collapses(values []int) bool { return len(runs(values)) <= maxItems/2 }

func dayWords(values []int) string {
	var items []string
	for _, run := range runs(values) {
		items = append(items, days.span(run))
	}
	noun := "days "
	if len(values) == 1 {
		noun = "day "
	}
	return noun + enumerate(items) + " of the month"
}

func weekdayWords(f field) string {
	var order []int // from Monday on, counted from 1
	for i, day := range weekOrder {
		if f.has(day) {
			order = append(order, i+1)
		}
	}
	week := bounds{1, 7, append(weekdays.names[1:7:7], weekdays.names[0])}
	var items []string
	for _, run := range runs(order) {
		items = append(items, week.span(run))
	}
	return enumerate(items)
}

// span names a run of values.
func (b bounds) span(run [2]int) string {
	name := func(value int) string {
		if b.names == nil {
			return strconv.Itoa(value)
		}
		return b.names[value-b.min]
	}
	if run[0] == run[1] {
		return name(run[0])
	}
	return name(run[0]) + " to " + name(run[1])
}

// runs puts values that follow one another together, three or more of them.
func runs(values []int) (found [][2]int) {
	for i := 0; i < len(values); {
		end := i
		for end+1 < len(values) && values[end+1] == values[end]+1 {
			end++
		}
		if end-i < 2 {
			end = i
		}
		found = append(found, [2]int{values[i], values[end]})
		i = end + 1
	}
	return found
}

// evenly returns the distance between values, if it is the same everywhere, or 0.
func evenly(values []int) int {
	if len(values) < 2 {
		return 0
	}
	step := values[1] - values[0]
	for i := 1; i < len(values); i++ {
		if values[i]-values[i-1] != step {
			return 0
		}
	}
	return step
}

func clockTime(hour, minute, second int) string {
	if second != 0 {
		return fmt.Sprintf("%02d:%02d:%02d", hour, minute, second)
	}
	return fmt.Sprintf("%02d:%02d", hour, minute)
}

func pastHour(minute, second int) string {
	if second != 0 {
		return fmt.Sprintf(":%02d:%02d", minute, second)
	}
	return fmt.Sprintf(":%02d", minute)
}

// enumerate joins items with commas, and "and" before the last.
func enumerate(items []string) string {
	if n := len(items); n > 1 {
		return strings.Join(items[:n-1], ", ") + " and " + items[n-1]
	}
	return strings.Join(items, "")
}
