// Package cronexpr reads cron expressions: the grammar of robfig/cron with @at and
// a seventh day of week, what is refused, and the schedules that expressions stand
// for. Nothing else in this module knows the grammar.
package cronexpr

import (
	"errors"
	"fmt"
	"math/bits"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/nbena/smallben/internal/shared"
	"github.com/nbena/smallben/internal/walltime"
)

// MaxLength bounds an expression, in bytes.
const MaxLength = 256

const (
	maxEvery      = 5 * 365 * 24 * time.Hour
	maxYearsAhead = 40 // of the first tick, as Next looks
)

// Rules are what depends on the configuration in which expressions are accepted. A
// stored one is read whatever they say.
type Rules struct {
	WithSeconds bool // six fields as well as five
	Recorded    bool // runs are recorded: every process must read an expression alike
}

// Check says why an expression may not be stored, or nil. The message names the
// expression.
func (r Rules) Check(expression string) error {
	if len(expression) > MaxLength {
		return fmt.Errorf("expression of %d bytes: at most %d are allowed", len(expression), MaxLength)
	}
	p, schedule, err := r.parse(expression)
	if err != nil {
		return fmt.Errorf("parse %q: %w", expression, err)
	}
	if err := p.check(schedule); err != nil {
		return fmt.Errorf("expression %q: %w", expression, err)
	}
	return nil
}

// parse reads an expression as a stored one is read, and refuses what depends on the
// configuration or looks like another expression than it is.
func (r Rules) parse(expression string) (p parts, schedule cron.Schedule, err error) {
	for _, c := range []byte(expression) {
		if (c < ' ' || c > '~') && !strings.ContainsRune("\t\n\v\f\r", rune(c)) {
			return p, nil, errors.New("only printable ASCII and white space are allowed")
		}
	}
	if p, err = split(expression); err != nil {
		return p, nil, err
	}
	if r.Recorded && p.zone == localZone {
		return p, nil, errors.New("time zone Local: machines that record runs together may differ in it")
	}
	if n := len(p.fields); !p.isDescriptor() && n != 5 {
		switch {
		case n == 6 && !r.WithSeconds:
			return p, nil, errors.New("expected exactly 5 fields, found 6: seconds need SchedulerConfig.WithSeconds")
		case !r.WithSeconds:
			return p, nil, fmt.Errorf("expected exactly 5 fields, found %d", n)
		case n != 6:
			return p, nil, fmt.Errorf("expected 5 or 6 fields, found %d", n)
		}
	}
	schedule, err = parseShared(expression)
	return p, schedule, err
}

// check refuses a schedule that is not what the expression seems to say, or never
// fires.
func (p *parts) check(schedule cron.Schedule) error {
	switch schedule := schedule.(type) {
	case cron.ConstantDelaySchedule:
		return validateEvery(p.fields[1])
	case Zoned:
		if hasEmptySet(schedule.fields) {
			return errors.New("a field is an empty list")
		}
		if err := p.checkSteps(); err != nil {
			return err
		}
	}
	now := time.Now()
	next := schedule.Next(now)
	switch _, once := schedule.(atSchedule); {
	case once && next.IsZero():
		return ErrPast
	case next.IsZero() || next.After(now.AddDate(maxYearsAhead, 0, 0)):
		return errors.New("it never fires in the next forty years")
	}
	return nil
}

// ErrPast refuses an @at whose time is past.
var ErrPast = errors.New("the time is past")

// validateEvery checks the duration that robfig/cron rounds in silence.
func validateEvery(text string) error {
	delay, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return err
	case delay <= 0:
		return errors.New("the duration is not positive")
	case delay < time.Second:
		return errors.New("the duration is under one second")
	case delay > maxEvery:
		return errors.New("the duration is over five years")
	}
	return nil
}

// hasEmptySet reports whether a field holds no value at all. robfig/cron's
// parser makes one of a list such as ",".
func hasEmptySet(f *walltime.Fields) bool {
	for _, set := range []uint64{f.Second, f.Minute, f.Hour, f.Dom, f.Month, f.Dow} {
		if set&^walltime.Star == 0 {
			return true
		}
	}
	return false
}

// Parse gives the schedule of a stored expression: robfig/cron's v3
// grammar, with five fields or six, and @at. createdAt is the origin of @every. It
// never panics, and Next of what it returns never takes longer than a millisecond.
func Parse(expression string, createdAt time.Time) (cron.Schedule, error) {
	parsed, err := parseShared(expression)
	if err != nil {
		return nil, fmt.Errorf("parse %q: %w", expression, err)
	}
	if every, ok := parsed.(cron.ConstantDelaySchedule); ok {
		return everySchedule{origin: createdAt.Unix(), delay: int64(every.Delay / time.Second)}, nil
	}
	return parsed, nil
}

// parseShared is parse, or what it gave before.
func parseShared(expression string) (cron.Schedule, error) {
	parseIt := func() (cron.Schedule, error) { return parse(expression) }
	if len(expression) > MaxLength || strings.Contains(expression, localZone) {
		// A program may set time.Local.
		return parseIt()
	}
	return parsedExpressions.Get(expression, parseIt)
}

// parser reads what any configuration accepts: rows were written under another
// configuration, perhaps.
var parser = cron.NewParser(
	cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor,
)

// parse gives the schedule of an expression, for @every that of robfig/cron.
func parse(expression string) (schedule cron.Schedule, err error) {
	defer func() {
		if r := recover(); r != nil {
			schedule, err = nil, fmt.Errorf("%v", r)
		}
	}()
	p, err := split(expression)
	if err != nil {
		return nil, err
	}
	location, err := p.location()
	if err != nil {
		return nil, err
	}
	if p.fields[0] == "@at" {
		return p.parseAt()
	}
	fields := slices.Clone(p.fields)
	if last := len(fields) - 1; !p.isDescriptor() {
		fields[last] = sundays(fields[last])
	}
	parsed, err := parser.Parse(strings.Join(fields, " "))
	if err != nil {
		return nil, p.explain(err)
	}
	s, ok := parsed.(*cron.SpecSchedule)
	if !ok {
		return parsed, nil
	}
	return Zoned{
		fields: &walltime.Fields{
			Second: s.Second, Minute: s.Minute, Hour: s.Hour,
			Dom: s.Dom, Month: s.Month, Dow: s.Dow,
			Interval: p.isInterval(),
		},
		location: location,
	}, nil
}

// parts are an expression as its white space parts it.
type parts struct {
	named  bool   // a time zone is named
	zone   string // its name: empty, UTC
	fields []string
}

// localZone names the time zone of the machine.
const localZone = "Local"

// split takes an expression apart.
func split(expression string) (p parts, err error) {
	isZone := func(s string) bool { return strings.HasPrefix(s, "TZ=") || strings.HasPrefix(s, "CRON_TZ=") }
	p.fields = strings.Fields(expression)
	if len(p.fields) > 0 && isZone(p.fields[0]) {
		p.named = true
		_, p.zone, _ = strings.Cut(p.fields[0], "=")
		p.fields = p.fields[1:]
		if len(p.fields) == 0 {
			return p, errors.New("nothing after the time zone")
		}
		if isZone(p.fields[0]) {
			return p, errors.New("a second time zone")
		}
	}
	if len(p.fields) == 0 {
		return p, errors.New("empty spec string")
	}
	return p, nil
}

func (p *parts) isDescriptor() bool { return strings.HasPrefix(p.fields[0], "@") }

// isInterval reports whether cron(8) takes the expression for one that fires
// whenever the clock shows a time that matches: the seconds, the minute or the hour
// begin with a star, and those of @hourly do.
func (p *parts) isInterval() bool {
	if p.isDescriptor() {
		return p.fields[0] == "@hourly"
	}
	return slices.ContainsFunc(p.fields[:len(p.fields)-3], func(field string) bool {
		return strings.HasPrefix(field, "*") || strings.HasPrefix(field, "?")
	})
}

// location is nil if the expression names no time zone.
func (p *parts) location() (*time.Location, error) {
	if !p.named {
		return nil, nil
	}
	load := func() (*time.Location, error) { return time.LoadLocation(p.zone) }
	loadShared := func() (*time.Location, error) { return locations.Get(p.zone, load) }
	if p.zone == localZone {
		loadShared = load
	}
	location, err := loadShared()
	if err != nil {
		return nil, fmt.Errorf("bad time zone %q: %w", p.zone, err)
	}
	return location, nil
}

var rfc3339 = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$`)

func (p *parts) parseAt() (cron.Schedule, error) {
	const form = "@at is followed by one time of RFC 3339 with its offset, as in @at 2027-05-01T11:30:00+02:00"
	if len(p.fields) != 2 {
		return nil, errors.New(form)
	}
	// time.Parse takes an hour of one digit, and a comma before the fraction.
	at, err := time.Parse(time.RFC3339, p.fields[1])
	if err == nil && !rfc3339.MatchString(p.fields[1]) {
		err = fmt.Errorf("%q is not", p.fields[1])
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", form, err)
	}
	return atSchedule(at.UnixMicro()), nil
}

// field is one of the six of an expression.
type field struct {
	name   string
	parser cron.Parser // of this field alone
	last   string      // the greatest value
	set    func(*cron.SpecSchedule) uint64
}

const dayOfWeek = "day of week"

var expressionFields = [...]field{
	{"second", cron.NewParser(cron.Second), "59", func(s *cron.SpecSchedule) uint64 { return s.Second }},
	{"minute", cron.NewParser(cron.Minute), "59", func(s *cron.SpecSchedule) uint64 { return s.Minute }},
	{"hour", cron.NewParser(cron.Hour), "23", func(s *cron.SpecSchedule) uint64 { return s.Hour }},
	{"day of month", cron.NewParser(cron.Dom), "31", func(s *cron.SpecSchedule) uint64 { return s.Dom }},
	{"month", cron.NewParser(cron.Month), "12", func(s *cron.SpecSchedule) uint64 { return s.Month }},
	{dayOfWeek, cron.NewParser(cron.Dow), "7", func(s *cron.SpecSchedule) uint64 { return s.Dow }},
}

// parse gives the set of a text.
func (f *field) parse(text string) (uint64, error) {
	if f.name == dayOfWeek {
		text = sundays(text)
	}
	// Without the space, robfig/cron takes a text that begins with TZ= or @ for
	// something else.
	parsed, err := f.parser.Parse(" " + text)
	if err != nil {
		return 0, err
	}
	return f.set(parsed.(*cron.SpecSchedule)), nil
}

// explain names the field that an error of the parser is about, if it is about one.
func (p *parts) explain(err error) error {
	if p.isDescriptor() {
		return err
	}
	missing := len(expressionFields) - len(p.fields)
	if missing != 0 && missing != 1 {
		return err
	}
	for i, text := range p.fields {
		f := &expressionFields[missing+i]
		if _, reason := f.parse(text); reason != nil {
			return fmt.Errorf("%s: %w", f.name, reason)
		}
	}
	return err
}

// checkSteps refuses a step that is greater than the number of values that it steps
// through: robfig/cron takes the first of them only. The expression has been parsed.
func (p *parts) checkSteps() error {
	if p.isDescriptor() {
		return nil
	}
	for i, text := range p.fields {
		f := &expressionFields[len(expressionFields)-len(p.fields)+i]
		for _, item := range strings.Split(text, ",") {
			span, stepText, stepped := strings.Cut(item, "/")
			if !stepped {
				continue
			}
			if span != "*" && span != "?" && !strings.Contains(span, "-") {
				span += "-" + f.last
			}
			set, err := f.parse(span)
			if err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			step, err := strconv.Atoi(stepText)
			if values := bits.OnesCount64(set &^ walltime.Star); err != nil || step > values {
				return fmt.Errorf("%s: %s: a step of %s through %d values", f.name, item, stepText, values)
			}
		}
	}
	return nil
}

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// weekday gives the number of a day of week, which is 7 if it is written so.
func weekday(text string) (number int, ok bool) {
	if number = slices.Index(weekdays, strings.ToLower(text)); number >= 0 {
		return number, true
	}
	number, err := strconv.Atoi(text)
	return number, err == nil && 0 <= number && number <= 7
}

// sundays writes a day of week without the Sunday that is 7 or that ends a range,
// which robfig/cron does not know. It changes nothing else.
func sundays(text string) string {
	items := strings.Split(text, ",")
	for i, item := range items {
		items[i] = sunday(item)
	}
	return strings.Join(items, ",")
}

// sunday is sundays for an item of a list.
func sunday(item string) string {
	span, step, stepped := strings.Cut(item, "/")
	low, high, ranged := strings.Cut(span, "-")
	first, ok := weekday(low)
	last := first
	if ok && ranged {
		last, ok = weekday(high)
		if last == 0 && first > 0 && strings.EqualFold(high, weekdays[0]) {
			last = 7
		}
	}
	if !ok || last != 7 {
		return item
	}
	if !stepped {
		step = "1"
	}
	switch first {
	case 7:
		return "0-0/" + step
	case 0:
		return "0-6/" + step
	}
	rest := fmt.Sprintf("%d-6/%s", first, step)
	if by, err := strconv.Atoi(step); err == nil && by > 0 && (7-first)%by == 0 {
		rest += ",0"
	}
	return rest
}

// The parser would load a time zone for each expression that names one, and each
// takes kilobytes. Schedules and locations do not change, so jobs share them.
var (
	parsedExpressions shared.Values[cron.Schedule]
	locations         shared.Values[*time.Location]
)
