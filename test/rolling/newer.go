//go:build newer

package main

import (
	"encoding/gob"

	"github.com/nbena/smallben"
)

type reminder struct{}

func (*reminder) Run(input smallben.CronJobInput) { ran("reminder", input) }

type summary struct{}

func (*summary) Run(input smallben.CronJobInput) { ran("summary", input) }

// audit does not end before its second attempt.
type audit struct{}

func (*audit) Run(input smallben.CronJobInput) {
	ran("audit", input)
	if input.Attempt == 1 {
		select {}
	}
}

var wanted = []smallben.Job{everySecond(1, &reminder{}), everySecond(2, &summary{}), {ID: 3, CronExpression: "@yearly", Job: &audit{}}}

func init() {
	gob.RegisterName("rolling.notice", &reminder{})
	gob.RegisterName("rolling.summary", &summary{})
	gob.RegisterName("rolling.audit", &audit{})
}
