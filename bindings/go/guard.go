package siren

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

const defaultConcurrency = 64

// Guard is an open guard. Any number of goroutines may use it.
type Guard struct {
	handle  uintptr
	gate    gate
	closed  atomic.Bool
	cleanup runtime.Cleanup
}

// Open opens a guard: a directory, a hub repository OWNER/NAME[@REVISION], or "" for the demo guard
// that ships with the library. It blocks while files are read, and fetched where they are not here.
//
// When ctx ends, Open returns at once; a file that is being read or fetched is so to its end, and the
// guard is then closed.
func Open(ctx context.Context, model string, options ...Option) (*Guard, error) {
	if err := load(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, ended(ctx)
	}
	o := &opening{texts: map[*cText]string{}, concurrency: defaultConcurrency}
	o.texts[&o.options.model] = model
	for _, option := range options {
		option(o)
	}
	if o.err != nil {
		return nil, o.err
	}
	if ctx.Done() == nil {
		return newGuard(o)
	}
	type opened struct {
		guard *Guard
		err   error
	}
	done := make(chan opened, 1)
	go func() {
		guard, err := newGuard(o)
		done <- opened{guard, err}
	}()
	select {
	case opened := <-done:
		return opened.guard, opened.err
	case <-ctx.Done():
		go func() {
			if opened := <-done; opened.guard != nil {
				_ = opened.guard.Close()
			}
		}()
		return nil, ended(ctx)
	}
}

func newGuard(o *opening) (*Guard, error) {
	handle, err := o.open()
	if err != nil {
		return nil, err
	}
	guard := &Guard{handle: handle, gate: make(gate, o.concurrency)}
	guard.cleanup = runtime.AddCleanup(guard, func(handle uintptr) { nativeFree(handle) }, handle)
	return guard, nil
}

// Close frees the guard. Calls that are inside the library still finish, and its streams go on; calls
// that come later fail with ErrInvalidHandle. A guard that is not closed is freed when it is garbage.
func (g *Guard) Close() error {
	if g.closed.Swap(true) {
		return nil
	}
	g.cleanup.Stop()
	if status := nativeFree(g.handle); Status(status) != statusOK {
		return &Error{Status: Status(status), Message: "the guard could not be freed"}
	}
	return nil
}

// Warmup runs one short text, so that the first call is as fast as the second.
func (g *Guard) Warmup(ctx context.Context) error {
	if err := g.gate.enter(ctx); err != nil {
		return err
	}
	defer g.gate.leave()
	defer runtime.KeepAlive(g)
	failed := newError()
	return check(nativeWarmup(g.handle, &failed), &failed)
}

// Result is what a text scored. The library makes it; a failed call gives none.
type Result struct {
	// Score is the probability that the text is harmful, from 0 to 1.
	Score float64
	// Threshold is what the score was compared with.
	Threshold float64
	// Harmful is Score >= Threshold.
	Harmful bool
	// Truncated: the text had more tokens than the guard reads.
	Truncated bool
	// Tokens that ran, special ones included.
	Tokens int
	// Window is the one that scored highest; nil without the option Windows.
	Window *Window
}

// Window is a part of a long text.
type Window struct {
	// Count of all windows, and the index of this one, from 0.
	Count, Index int
	// Start and End in bytes: of the text, or of prompt, newline and response joined.
	Start, End int
}

func windowOf(count, index, start, end uint64) *Window {
	if count == 0 {
		return nil
	}
	return &Window{Count: int(count), Index: int(index), Start: int(start), End: int(end)}
}

func resultOf(r *cResult) *Result {
	return &Result{
		Score:     r.score,
		Threshold: r.threshold,
		Harmful:   r.isHarmful != 0,
		Truncated: r.truncated != 0,
		Tokens:    int(r.tokens),
		Window:    windowOf(r.windows, r.windowIndex, r.windowStart, r.windowEnd),
	}
}

// scoreFrame is what one call hands to the library; such frames are used again, because their memory
// is Go's heap.
type scoreFrame struct {
	input   cInput
	options cScoreOptions
	result  cResult
	failed  cError
}

var scoreFrames = sync.Pool{New: func() any { return new(scoreFrame) }}

// Score scores one input. When ctx ends before the result is there, the call fails with ErrCancelled
// or ErrDeadlineExceeded, which are also ctx's own error to errors.Is.
func (g *Guard) Score(ctx context.Context, input Input, options ...ScoreOption) (*Result, error) {
	var pinner runtime.Pinner
	frame := scoreFrames.Get().(*scoreFrame)
	defer func() {
		pinner.Unpin()
		frame.input = cInput{}
		scoreFrames.Put(frame)
	}()
	call, err := g.gate.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer call.end()
	defer runtime.KeepAlive(g)
	frame.input = input.c(&pinner)
	frame.options = scoreOptions(options)
	frame.options.cancel, frame.options.timeoutMs = call.token, call.timeoutMs
	frame.result = cResult{structSize: uint32(unsafe.Sizeof(cResult{}))}
	frame.failed.structSize = uint32(unsafe.Sizeof(frame.failed))
	status := nativeScore(g.handle, &frame.input, &frame.options, &frame.result, &frame.failed)
	if err := checkContext(ctx, status, &frame.failed); err != nil {
		return nil, err
	}
	return resultOf(&frame.result), nil
}

// Scored is what became of one input of a batch: either a Result or an Err.
type Scored struct {
	Result *Result
	Err    error
}

// ScoreBatch scores inputs together. Each has a result or an error of its own; a call that fails as a
// whole gives none of them.
func (g *Guard) ScoreBatch(ctx context.Context, inputs []Input, options ...ScoreOption) ([]Scored, error) {
	call, err := g.gate.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer call.end()
	defer runtime.KeepAlive(g)
	var pinner runtime.Pinner
	defer pinner.Unpin()
	raw := make([]cInput, len(inputs))
	results := make([]cResult, len(inputs))
	failures := make([]cError, len(inputs))
	for i := range inputs {
		raw[i] = inputs[i].c(&pinner)
		results[i].structSize = uint32(unsafe.Sizeof(cResult{}))
		failures[i].structSize = uint32(unsafe.Sizeof(cError{}))
	}
	o, failed := new(cScoreOptions), new(cError)
	*o, *failed = scoreOptions(options), newError()
	o.cancel, o.timeoutMs = call.token, call.timeoutMs
	status := nativeScoreBatch(g.handle, raw, o, results, failures, failed)
	if err := checkContext(ctx, status, failed); err != nil {
		return nil, err
	}
	scored := make([]Scored, len(inputs))
	for i := range scored {
		if err := checkContext(ctx, results[i].status, &failures[i]); err != nil {
			scored[i].Err = err
		} else {
			scored[i].Result = resultOf(&results[i])
		}
	}
	return scored, nil
}

func scoreOptions(options []ScoreOption) cScoreOptions {
	o := cScoreOptions{structSize: uint32(unsafe.Sizeof(cScoreOptions{}))}
	for _, option := range options {
		option.score(&o)
	}
	return o
}

// gate lets a bounded number of calls into the library: each of them holds a thread.
type gate chan struct{}

func (g gate) enter(ctx context.Context) error {
	// Of a free place and an ended context, select would take either.
	if ctx.Err() != nil {
		return ended(ctx)
	}
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ended(ctx)
	}
}

func (g gate) leave() { <-g }

// running is a call inside the library, and how its context ends it.
type running struct {
	gate      gate
	token     uintptr
	timeoutMs uint64
	stop      func() bool
}

func (g gate) begin(ctx context.Context) (running, error) {
	if err := g.enter(ctx); err != nil {
		return running{}, err
	}
	call := running{gate: g}
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		if left <= 0 {
			g.leave()
			return running{}, &Error{Status: ErrDeadlineExceeded, Message: "the deadline passed before the call", cause: context.DeadlineExceeded}
		}
		// Rounded up, since 0 is "none".
		call.timeoutMs = uint64((left + time.Millisecond - 1) / time.Millisecond)
	}
	if ctx.Done() != nil {
		token, failed := new(uintptr), new(cError)
		*failed = newError()
		if err := check(nativeCancelTokenNew(token, failed), failed); err != nil {
			g.leave()
			return running{}, err
		}
		call.token = *token
		call.stop = context.AfterFunc(ctx, func() {
			// The deadline is the library's own to report.
			if ctx.Err() == context.Canceled {
				nativeCancel(call.token)
			}
		})
	}
	return call, nil
}

func (r running) end() {
	if r.stop != nil {
		// It may run at this moment: a token that is freed is a number that names nothing.
		r.stop()
		nativeCancelTokenFree(r.token)
	}
	r.gate.leave()
}
