package siren

import (
	"context"
	"runtime"
	"sync/atomic"
	"unsafe"
)

// Stream is a growing text on a guard, after an optional prompt. One goroutine at a time: a call while
// another runs fails with ErrInUse. It goes on when its guard is closed.
type Stream struct {
	handle  uintptr
	gate    gate
	closed  atomic.Bool
	cleanup runtime.Cleanup
}

// PushResult is what all of a stream scores after a push.
type PushResult struct {
	// Score is the probability that all that was pushed, after the prompt, is harmful.
	Score float64
	// Threshold is what the score was compared with.
	Threshold float64
	// Harmful is Score >= Threshold: now, whatever earlier pushes scored.
	Harmful bool
	// Truncated: there are more tokens than the guard reads, and the rest was not read.
	Truncated bool
	// Tokens that were scored, special ones and the prompt's included. May shrink.
	Tokens int
	// Crossing is where the running score first reached the threshold, or nil; it stays.
	Crossing *Crossing
	// Cleared is how many of the pushed bytes may be shown, whole characters. Never shrinks.
	Cleared int
	// Window is the one that scored highest; nil without the option Windows.
	Window *Window
	// TokenScores are the running scores that the option asked for; the first is that of token
	// FirstScored, and there were TokenScoresCount of them.
	TokenScores                   []float64
	FirstScored, TokenScoresCount int
}

// Crossing is where a stream's running score first reached the threshold.
type Crossing struct {
	// Token is its index from 0, special ones and the prompt's counted.
	Token int
	// Byte is where that token ends in the pushed bytes.
	Byte int
}

// NewStream opens a stream.
func (g *Guard) NewStream(options ...StreamOption) (*Stream, error) {
	defer runtime.KeepAlive(g)
	var pinner runtime.Pinner
	defer pinner.Unpin()
	opening := streamOpening{options: cStreamOptions{structSize: uint32(unsafe.Sizeof(cStreamOptions{}))}}
	for _, option := range options {
		option.stream(&opening)
	}
	o, handle, failed := new(cStreamOptions), new(uintptr), new(cError)
	*o, *failed = opening.options, newError()
	o.prompt = opening.prompt.c(&pinner)
	if err := check(nativeStreamNew(g.handle, o, handle, failed), failed); err != nil {
		return nil, err
	}
	return newStream(*handle, g.gate), nil
}

func newStream(handle uintptr, gate gate) *Stream {
	stream := &Stream{handle: handle, gate: gate}
	stream.cleanup = runtime.AddCleanup(stream, func(handle uintptr) { nativeStreamFree(handle) }, handle)
	return stream
}

// pushFrame is what one push hands to the library.
type pushFrame struct {
	options     cPushOptions
	result      cPushResult
	failed      cError
	tokenScores []float64
}

// Push adds a chunk of UTF-8, which may split a character, and scores all of the stream. A push that
// fails leaves the stream as it was.
func (s *Stream) Push(ctx context.Context, chunk string, options ...PushOption) (*PushResult, error) {
	return s.add(ctx, partOf(chunk), false, options)
}

// PushBytes is Push for bytes, which must not change while it runs.
func (s *Stream) PushBytes(ctx context.Context, chunk []byte, options ...PushOption) (*PushResult, error) {
	return s.add(ctx, partOf(chunk), false, options)
}

// Finish says that nothing more comes: the last result, in which every byte is cleared that can be.
func (s *Stream) Finish(ctx context.Context, options ...PushOption) (*PushResult, error) {
	return s.add(ctx, part{}, true, options)
}

func (s *Stream) add(ctx context.Context, chunk part, finish bool, options []PushOption) (*PushResult, error) {
	call, err := s.gate.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer call.end()
	defer runtime.KeepAlive(s)
	var pinner runtime.Pinner
	defer pinner.Unpin()
	frame := pushFrame{}
	for _, option := range options {
		option.push(&frame)
	}
	// Each alone in its memory: cgo looks at all of an object for pointers that are not pinned.
	o, result, failed := new(cPushOptions), new(cPushResult), new(cError)
	*o = frame.options
	o.structSize, result.structSize = uint32(unsafe.Sizeof(*o)), uint32(unsafe.Sizeof(*result))
	*failed = newError()
	o.cancel, o.timeoutMs = call.token, call.timeoutMs
	if len(frame.tokenScores) > 0 {
		start := unsafe.SliceData(frame.tokenScores)
		pinner.Pin(start)
		o.tokenScores, o.tokenScoresCapacity = unsafe.Pointer(start), uintptr(len(frame.tokenScores))
	}
	var status int32
	if finish {
		status = nativeStreamFinish(s.handle, o, result, failed)
	} else {
		text := chunk.c(&pinner)
		status = nativeStreamPush(s.handle, text.data, chunk.length, o, result, failed)
	}
	if err := checkContext(ctx, status, failed); err != nil {
		return nil, err
	}
	pushed := &PushResult{
		Score:            result.score,
		Threshold:        result.threshold,
		Harmful:          result.isHarmful != 0,
		Truncated:        result.truncated != 0,
		Tokens:           int(result.tokens),
		Cleared:          int(result.clearedBytes),
		Window:           windowOf(result.windows, result.windowIndex, result.windowStart, result.windowEnd),
		FirstScored:      int(result.firstScored),
		TokenScoresCount: int(result.tokenScoresCount),
		TokenScores:      frame.tokenScores[:min(uint64(len(frame.tokenScores)), result.tokenScoresCount)],
	}
	if result.crossed != 0 {
		pushed.Crossing = &Crossing{Token: int(result.crossingToken), Byte: int(result.crossingByte)}
	}
	return pushed, nil
}

// Reset forgets what was pushed, and keeps the prompt and the options.
func (s *Stream) Reset() error {
	defer runtime.KeepAlive(s)
	failed := newError()
	return check(nativeStreamReset(s.handle, &failed), &failed)
}

// Fork makes a second stream in the same state; from then on the two know nothing of each other.
func (s *Stream) Fork() (*Stream, error) {
	defer runtime.KeepAlive(s)
	handle, failed := new(uintptr), newError()
	if err := check(nativeStreamFork(s.handle, handle, &failed), &failed); err != nil {
		return nil, err
	}
	return newStream(*handle, s.gate), nil
}

// Close frees the stream. A call that is inside the library still finishes; later ones fail with
// ErrInvalidHandle. A stream that is not closed is freed when it is garbage.
func (s *Stream) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.cleanup.Stop()
	if status := nativeStreamFree(s.handle); Status(status) != statusOK {
		return &Error{Status: Status(status), Message: "the stream could not be freed"}
	}
	return nil
}
