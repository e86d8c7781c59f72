// Package smallbentest helps to test what uses SmallBen. MemoryRepository keeps jobs
// in memory, which works in the fake time of testing/synctest. CheckStored reports
// what a job loses when it is stored. TestRepository tests an implementation of
// smallben.Repository. It depends on no database driver and no test framework but
// testing.
package smallbentest
