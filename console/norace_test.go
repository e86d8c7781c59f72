//go:build !race

package console

const raceFactor = 1
