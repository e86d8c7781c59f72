package smallben

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/robfig/cron/v3"
)

const (
	maxExpressionLength = 256                      // bytes
	maxEvery            = 5 * 365 * 24 * time.Hour // as far ahead as robfig/cron looks
	everyPrefix         = "@every "                // the only descriptor with an argument
	wholeFields         = ^uint64(0) &^ (1 << 63)  // every bit of a field but robfig's star
)

// lenientParser reads what any configuration accepts: rows were written under
// another configuration, perhaps.
var lenientParser = cron.NewParser(
	cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor,
)

// strictParser words its errors for those who may not give seconds.
var strictParser = cron.NewParser(
	cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor,
)

// parseExpression gives the schedule of a stored expression: robfig/cron's v3
// grammar, with five fields or six. createdAt is the origin of @every. It never
// panics, and Next of what it returns never takes longer than milliseconds.
func parseExpression(expression string, createdAt time.Time) (cron.Schedule, error) {
	parsed, err := parseLeniently(expression)
	if every, ok := parsed.(cron.ConstantDelaySchedule); ok {
		return everySchedule{origin: createdAt.Unix(), delay: int64(every.Delay / time.Second)}, err
	}
	return parsed, err
}

// parseLeniently is parse by the lenient parser, or what it gave before.
func parseLeniently(expression string) (cron.Schedule, error) {
	parse := func() (cron.Schedule, error) { return parse(lenientParser, expression) }
	if len(expression) > maxExpressionLength {
		return parse()
	}
	return parsedExpressions.get(expression, parse)
}

func parse(parser cron.Parser, expression string) (schedule cron.Schedule, err error) {
	fail := func(err error) (cron.Schedule, error) {
		return nil, fmt.Errorf("parse %q: %w", expression, err)
	}
	defer func() {
		if r := recover(); r != nil {
			schedule, err = fail(fmt.Errorf("%v", r))
		}
	}()
	location, fields := time.Local, expression
	if zone, rest, _ := strings.Cut(expression, " "); isZone(zone) {
		fields = strings.TrimSpace(rest)
		if fields == "" {
			// The parser panics on "TZ=UTC".
			return fail(errors.New("nothing after the time zone"))
		}
		if isZone(fields) {
			return fail(errors.New("a second time zone"))
		}
		_, name, _ := strings.Cut(zone, "=")
		if location, err = locations.get(name, func() (*time.Location, error) { return time.LoadLocation(name) }); err != nil {
			return fail(fmt.Errorf("bad time zone %q: %w", name, err))
		}
	}
	parsed, err := parser.Parse(fields)
	if err != nil {
		return fail(err)
	}
	if spec, ok := parsed.(*cron.SpecSchedule); ok {
		if emptyField(spec) {
			return neverSchedule{}, nil
		}
		spec.Location = location
	}
	return parsed, nil
}

func isZone(s string) bool {
	return strings.HasPrefix(s, "TZ=") || strings.HasPrefix(s, "CRON_TZ=")
}

// The parser would load a time zone for each expression that names one, and each
// takes kilobytes. Schedules and locations do not change, so jobs share them.
var (
	parsedExpressions shared[cron.Schedule]
	locations         shared[*time.Location]
)

// shared keeps values that many jobs have in common. It forgets all of them when
// it is full, which only costs making them again. The zero value is empty; it is
// goroutine-safe.
type shared[V any] struct {
	mu     sync.RWMutex
	values map[string]V
}

const maxShared = 4096

// get returns the value of key, or makes it. Errors are not kept.
func (s *shared[V]) get(key string, make func() (V, error)) (V, error) {
	s.mu.RLock()
	value, ok := s.values[key]
	s.mu.RUnlock()
	if ok {
		return value, nil
	}
	value, err := make()
	if err != nil {
		return value, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.values == nil || len(s.values) >= maxShared {
		s.values = map[string]V{}
	}
	s.values[strings.Clone(key)] = value
	return value, nil
}

// emptyField reports whether a field holds no value at all. robfig/cron's
// parser makes one of a list such as ",", and its Next then tries every second
// of five years.
func emptyField(s *cron.SpecSchedule) bool {
	for _, field := range []uint64{s.Second, s.Minute, s.Hour, s.Dom, s.Month, s.Dow} {
		if field&wholeFields == 0 {
			return true
		}
	}
	return false
}

// validateExpression says why an expression may not be stored, or nil. The
// message names the expression.
func validateExpression(expression string, withSeconds bool) error {
	if len(expression) > maxExpressionLength {
		return fmt.Errorf("expression of %d bytes: at most %d are allowed", len(expression), maxExpressionLength)
	}
	for _, c := range []byte(expression) {
		if c < ' ' || c > '~' {
			return fmt.Errorf("expression %q: only printable ASCII is allowed", expression)
		}
	}
	schedule, err := parseLeniently(expression)
	if !withSeconds && (err != nil || len(strings.Fields(expression)) > 5) {
		// The parsers agree on five fields.
		schedule, err = parse(strictParser, expression)
	}
	if err != nil {
		return err
	}
	switch schedule.(type) {
	case neverSchedule:
		return fmt.Errorf("expression %q: a field is an empty list", expression)
	case cron.ConstantDelaySchedule:
		err = validateEvery(expression)
	default:
		if schedule.Next(time.Now()).IsZero() {
			err = errors.New("it never fires in the next five years")
		}
	}
	if err != nil {
		return fmt.Errorf("expression %q: %w", expression, err)
	}
	return nil
}

// NextRuns returns the first n ticks of an expression after the call, fewer if it
// has fewer, or why AddJobs would refuse it (ErrInvalidJob): for a form in which a user types one.
// It goes by WithSeconds and WithLocation of config; nil means the zero
// SchedulerConfig. The ticks of @every count from now, as if the job were added
// now. Of a job that is stored, Job.NextRuns tells.
func NextRuns(expression string, n int, config *SchedulerConfig) ([]time.Time, error) {
	if config == nil {
		config = &SchedulerConfig{}
	}
	if err := validateExpression(expression, config.WithSeconds); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidJob, err)
	}
	now := time.Now().In(config.location())
	schedule, err := parseExpression(expression, now)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidJob, err)
	}
	return nextTicks(schedule, now, n), nil
}

func nextTicks(schedule cron.Schedule, from time.Time, n int) []time.Time {
	var ticks []time.Time
	for range n {
		if from = schedule.Next(from); from.IsZero() {
			break
		}
		ticks = append(ticks, from)
	}
	return ticks
}

// validateEvery checks the duration that robfig/cron rounds in silence.
func validateEvery(expression string) error {
	_, text, _ := strings.Cut(expression, everyPrefix)
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

// everySchedule is @every with a phase that does not depend on when the process
// started: its instants are origin + k·delay, in Unix seconds.
type everySchedule struct {
	origin int64 // Unix seconds
	delay  int64 // seconds, at least 1
}

// Next returns the first instant after t. Both operands are reduced first, so
// that no origin, the zero time included, overflows the difference.
func (s everySchedule) Next(t time.Time) time.Time {
	now := t.Unix()
	since := floorMod(floorMod(now, s.delay)-floorMod(s.origin, s.delay), s.delay)
	return time.Unix(now+s.delay-since, 0).In(t.Location())
}

// floorMod is a mod m with the sign of m.
func floorMod(a, m int64) int64 {
	return (a%m + m) % m
}

// neverSchedule is the schedule of an expression that matches no instant.
type neverSchedule struct{}

// Next returns the zero time, which robfig/cron takes for "never".
func (neverSchedule) Next(time.Time) time.Time { return time.Time{} }

// canonicalSchedule gives the schedule that has the same ticks wherever Next
// starts, in a location for the expressions that name none: each instant at which
// the clock there shows a time that matches. robfig/cron's own Next may pass over
// ticks, depending on its start, where the clock is set by other than an hour.
func canonicalSchedule(schedule cron.Schedule, location *time.Location) cron.Schedule {
	spec, ok := schedule.(*cron.SpecSchedule)
	if !ok {
		return schedule // of instants, or of none
	}
	if spec.Location != time.Local {
		location = spec.Location
	}
	return zonedSchedule{spec, location}
}

type zonedSchedule struct {
	spec     *cron.SpecSchedule
	location *time.Location
}

// Next asks for one stretch of time after another in which the clock is not set, as
// if it never were.
func (z zonedSchedule) Next(t time.Time) time.Time {
	// No two clocks differ by more.
	const most = 26 * time.Hour
	spec := *z.spec
	after := t
	for limit := t.Add(maxEvery); after.Before(limit); {
		within := after.Add(time.Nanosecond).In(z.location)
		_, offset := within.Zone()
		_, end := within.ZoneBounds()
		if !end.IsZero() && !end.After(within) {
			// ZoneBounds takes no account of the last day of a leap year.
			end = within.Add(24 * time.Hour)
		}
		spec.Location = time.FixedZone("", offset)
		next := spec.Next(after)
		if !next.IsZero() && (end.IsZero() || next.Before(end)) {
			return next.In(t.Location())
		}
		if end.IsZero() {
			break
		}
		far := end.Sub(after) > most
		if far && next.IsZero() {
			break
		}
		if after = end.Add(-time.Nanosecond); far && next.Add(-most).After(after) {
			// What matches in a later stretch is not further from next.
			after = next.Add(-most)
		}
	}
	return time.Time{}
}
