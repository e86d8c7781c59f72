// Package test proves from outside what package smallben promises: under faults of
// any operation of its databases, on rows and input of any kind, in random
// sequences of calls, and in real processes that are killed, stopped and cut off.
// What each test makes fail stands in docs/faults.md.
package test
