package main

import (
	"fmt"
	"image/color"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	vgdraw "gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// line is what one subject's works take together, by the number of jobs.
type line struct {
	place, subject string
	works          []work
	color          color.Color
}

var (
	blue   = color.NRGBA{0x1f, 0x5f, 0xd0, 0xff}
	orange = color.NRGBA{0xe0, 0x7b, 0x00, 0xff}
	green  = color.NRGBA{0x2a, 0x8f, 0x3c, 0xff}
	purple = color.NRGBA{0x8a, 0x3f, 0xb0, 0xff}
)

// common are the works that every subject does on a database.
var common = []work{adding, starting, pausing, resuming, listing, updating, deleting}

func drawings() map[string][]line {
	both := []work{addingInMem, removingHalf}
	return map[string][]line{
		"In memory: add all, remove half": {
			{memory, "SmallBen", both, blue},
			{memory, "gocron", both, green},
			{memory, "robfig/cron", both, orange},
			{memory, "go-quartz", both, purple},
		},
		"SQLite: a life of the jobs": {
			{"SQLite", "SmallBen", common, blue},
			{"SQLite", "GORM", common, orange},
			{"SQLite", "database/sql", common, green},
		},
		"PostgreSQL: a life of the jobs": {
			{"PostgreSQL", "SmallBen", common, blue},
			{"PostgreSQL", "GORM", common, orange},
			{"PostgreSQL", "database/sql", common, green},
			{"PostgreSQL", "pgx", common, purple},
		},
	}
}

// draw draws the growth, log-log.
func draw(o *options, r results) error {
	var plots []*plot.Plot
	for _, title := range []string{"In memory: add all, remove half", "SQLite: a life of the jobs", "PostgreSQL: a life of the jobs"} {
		p := plot.New()
		p.Title.Text = title
		p.X.Label.Text, p.Y.Label.Text = "jobs", "seconds"
		p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
		p.X.Tick.Marker, p.Y.Tick.Marker = plot.LogTicks{Prec: -1}, plot.LogTicks{Prec: -1}
		p.Legend.Top, p.Legend.Left = true, true
		p.Add(plotter.NewGrid())
		for _, l := range drawings()[title] {
			if err := l.add(p, o, r); err != nil {
				return err
			}
		}
		p.X.Min, p.X.Max = float64(o.sizes()[0]), float64(o.sizes()[len(o.sizes())-1])
		p.Y.Min, p.Y.Max = 1e-3, 100
		plots = append(plots, p)
	}
	canvas := vgsvg.New(33*vg.Centimeter, 11*vg.Centimeter)
	tiles := vgdraw.Tiles{Rows: 1, Cols: len(plots), PadX: 5 * vg.Millimeter, PadTop: 2 * vg.Millimeter, PadBottom: 2 * vg.Millimeter, PadRight: 4 * vg.Millimeter}
	for i, tile := range plot.Align([][]*plot.Plot{plots}, tiles, vgdraw.New(canvas))[0] {
		plots[i].Draw(tile)
	}
	file, err := os.Create(o.svg)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := canvas.WriteTo(file); err != nil {
		return err
	}
	return file.Close()
}

// add draws the sums of those numbers of jobs at which all works were measured.
func (l line) add(p *plot.Plot, o *options, r results) error {
	var points plotter.XYs
	for _, n := range o.sizes() {
		sum, all := 0.0, true
		for _, w := range l.works {
			value, ok := r.median(cell{l.place, l.subject, w, n})
			sum, all = sum+value, all && ok
		}
		if all {
			points = append(points, plotter.XY{X: float64(n), Y: sum})
		}
	}
	if len(points) == 0 {
		return nil
	}
	drawn, marks, err := plotter.NewLinePoints(points)
	if err != nil {
		return err
	}
	drawn.Color, drawn.Width = l.color, vg.Points(1.5)
	marks.Color, marks.Shape, marks.Radius = l.color, vgdraw.CircleGlyph{}, vg.Points(2.5)
	p.Add(drawn, marks)
	name := l.subject
	if last := int(points[len(points)-1].X); last < o.big {
		name += fmt.Sprintf(" (to %s)", thousands(last))
	}
	p.Legend.Add(name, drawn, marks)
	return nil
}
