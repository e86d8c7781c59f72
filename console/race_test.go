//go:build race

package console

// raceFactor is how much longer everything takes with the race detector.
const raceFactor = 10
