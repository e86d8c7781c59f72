//go:build !newer

package main

import (
	"encoding/gob"

	"github.com/nbena/smallben"
)

type notice struct{}

func (*notice) Run(input smallben.CronJobInput) { ran("notice", input) }

type report struct{}

func (*report) Run(input smallben.CronJobInput) { ran("report", input) }

var wanted = []smallben.Job{everySecond(1, &notice{}), everySecond(2, &report{})}

func init() {
	gob.RegisterName("rolling.notice", &notice{})
	gob.RegisterName("rolling.report", &report{})
}
