package main

import (
	"errors"
	"sync/atomic"

	"libsiren/siren"
)

// Current is the guard in use, which can be replaced while it is: by one with new weights, or after it
// was poisoned.
type Current struct{ guard atomic.Pointer[siren.Guard] }

// NewCurrent starts with guard.
func NewCurrent(guard *siren.Guard) *Current {
	c := new(Current)
	c.guard.Store(guard)
	return c
}

// Replace takes guard from now on and closes the one before it. Its streams go on to their end.
func (c *Current) Replace(guard *siren.Guard) error { return c.guard.Swap(guard).Close() }

// Open opens a stream on the guard in use.
func (c *Current) Open(prompt string) (Stream, error) {
	for {
		guard := c.guard.Load()
		// In windows, so that a long answer is judged to its end.
		stream, err := guard.NewStream(siren.WithPrompt(prompt), siren.Windows{})
		if err == nil {
			return stream, nil
		}
		// It was replaced between the two lines above.
		if errors.Is(err, siren.ErrInvalidHandle) && c.guard.Load() != guard {
			continue
		}
		return nil, err
	}
}
