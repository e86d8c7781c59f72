package smallben

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

const (
	maxExpressionLength = 256                      // bytes
	maxEvery            = 5 * 365 * 24 * time.Hour // as far ahead as robfig/cron looks
	zonePrefix          = "TZ="                    // and CRON_TZ=
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
	return parseWith(lenientParser, expression, createdAt)
}

func parseWith(parser cron.Parser, expression string, createdAt time.Time) (schedule cron.Schedule, err error) {
	defer func() {
		if r := recover(); r != nil {
			schedule, err = nil, fmt.Errorf("parse %q: %v", expression, r)
		}
	}()
	if zone, fields, found := strings.Cut(expression, " "); isZone(zone) && (!found || strings.TrimSpace(fields) == "") {
		return nil, fmt.Errorf("parse %q: nothing after the time zone", expression)
	}
	parsed, err := parser.Parse(expression)
	if err != nil {
		return nil, fmt.Errorf("parse %q: %w", expression, err)
	}
	switch parsed := parsed.(type) {
	case cron.ConstantDelaySchedule:
		return everySchedule{origin: createdAt.Unix(), delay: int64(parsed.Delay / time.Second)}, nil
	case *cron.SpecSchedule:
		if emptyField(parsed) {
			return neverSchedule{}, nil
		}
		return parsed, nil
	default:
		return nil, fmt.Errorf("parse %q: robfig/cron gave a schedule of the unknown type %T", expression, parsed)
	}
}

func isZone(s string) bool {
	return strings.HasPrefix(s, zonePrefix) || strings.HasPrefix(s, "CRON_"+zonePrefix)
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
	parser := strictParser
	if withSeconds {
		parser = lenientParser
	}
	now := time.Now()
	schedule, err := parseWith(parser, expression, now)
	if err != nil {
		return err
	}
	switch schedule.(type) {
	case neverSchedule:
		return fmt.Errorf("expression %q: a field is an empty list", expression)
	case everySchedule:
		err = validateEvery(expression)
	default:
		if schedule.Next(now).IsZero() {
			err = errors.New("it never fires in the next five years")
		}
	}
	if err != nil {
		return fmt.Errorf("expression %q: %w", expression, err)
	}
	return nil
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
