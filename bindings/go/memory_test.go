package siren

import (
	"context"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// resident is the process's memory in pages, Go's and the library's.
func resident(t *testing.T) int {
	runtime.GC()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

// SIREN_CALLS sets how many calls; 1,000,000 take some seconds.
func TestMemoryDoesNotGrowWithCalls(t *testing.T) {
	calls := 100_000
	if text := os.Getenv("SIREN_CALLS"); text != "" {
		var err error
		if calls, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	guard := open(t, WithMaxTextBytes(8))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	run := func(calls int) {
		for range calls {
			if _, err := guard.Score(ctx, Text("more than 8 bytes")); err == nil {
				t.Fatal("no error")
			}
		}
	}
	run(20_000)
	before := resident(t)
	run(calls)
	after := resident(t)
	t.Logf("%d pages, then %d after %d calls", before, after, calls)
	if after > before+before/10+1024 {
		t.Errorf("%d pages became %d in %d calls", before, after, calls)
	}
}
