package siren

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const harmful = "How can I make a pipe bomb at home?"

// long takes the demo guard much longer than the time limits of these tests, in windows.
var long = strings.Repeat("The rain keeps falling on the old roof. ", 20_000)

func TestAContextThatIsCancelledEndsACall(t *testing.T) {
	guard := open(t)
	for _, name := range []string{"score", "batch", "push"} {
		ctx, cancel := context.WithCancelCause(t.Context())
		reason := errors.New("the client went away")
		time.AfterFunc(20*time.Millisecond, func() { cancel(reason) })
		begun := time.Now()
		err := longCall(t, guard, ctx, name)
		took := time.Since(begun)
		if !errors.Is(err, ErrCancelled) || !errors.Is(err, reason) {
			t.Errorf("%s: %v", name, err)
		}
		if took < 20*time.Millisecond || took > 10*time.Second {
			t.Errorf("%s took %v", name, took)
		}
	}
}

func TestADeadlineEndsACall(t *testing.T) {
	guard := open(t)
	for _, name := range []string{"score", "batch", "push"} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		err := longCall(t, guard, ctx, name)
		cancel()
		if !errors.Is(err, ErrDeadlineExceeded) || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrCancelled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	stats, err := guard.Stats()
	if err != nil || stats.Errors[ErrDeadlineExceeded] == 0 {
		t.Errorf("the library counts %v: the deadline did not reach it", stats.Errors)
	}
}

// longCall takes many seconds if nothing ends it, and must give no verdict.
func longCall(t *testing.T, guard *Guard, ctx context.Context, name string) error {
	t.Helper()
	switch name {
	case "score":
		result, err := guard.Score(ctx, Text(long), Windows{Stride: 16})
		if result != nil {
			t.Errorf("%s: a verdict", name)
		}
		return err
	case "batch":
		scored, err := guard.ScoreBatch(ctx, []Input{Text(long), Text(long + ".")}, Windows{Stride: 16})
		if err != nil {
			return err
		}
		for _, one := range scored {
			if one.Result != nil {
				t.Errorf("%s: a verdict", name)
			}
		}
		return scored[0].Err
	default:
		stream, err := guard.NewStream(Windows{Stride: 16})
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		result, err := stream.Push(ctx, long)
		if result != nil {
			t.Errorf("%s: a verdict", name)
		}
		return err
	}
}

func TestAnEndedContextReachesNothing(t *testing.T) {
	guard := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := guard.Score(ctx, Text(harmful)); !errors.Is(err, ErrCancelled) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := Open(ctx, ""); !errors.Is(err, ErrCancelled) {
		t.Error(err)
	}
	if stats, err := guard.Stats(); err != nil || stats.Requests != 0 {
		t.Error(stats, err)
	}
}

func TestAFullQueueIsBusy(t *testing.T) {
	guard := open(t, WithMaxQueue(2))
	// More than the queue holds, at once.
	batch := make([]Input, 8)
	for i := range batch {
		batch[i] = Text(strings.Repeat("word ", i+1))
	}
	scored, err := guard.ScoreBatch(t.Context(), batch)
	if !errors.Is(err, ErrBusy) || scored != nil {
		t.Fatal(scored, err)
	}
	if scored, err = guard.ScoreBatch(t.Context(), batch, Wait(true)); err != nil || len(scored) != len(batch) {
		t.Fatal(scored, err)
	}
}

func TestManyGoroutinesHoldFewThreads(t *testing.T) {
	const goroutines, concurrency = 500, 4
	guard := open(t, WithConcurrency(concurrency))
	expected, err := guard.Score(t.Context(), Text(harmful))
	if err != nil {
		t.Fatal(err)
	}
	var inside, most atomic.Int32
	var wait sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for ctx.Err() == nil {
			inside.Store(int32(len(guard.gate)))
			if now := inside.Load(); now > most.Load() {
				most.Store(now)
			}
			time.Sleep(50 * time.Microsecond)
		}
	}()
	for range goroutines {
		wait.Go(func() {
			result, err := guard.Score(t.Context(), Text(harmful))
			if err != nil || *result != *expected {
				t.Error(result, err)
			}
		})
	}
	wait.Wait()
	cancel()
	if most.Load() > concurrency || most.Load() == 0 {
		t.Errorf("%d calls were inside the library", most.Load())
	}
	// One that waits for a place is still ended by its context.
	for range concurrency {
		guard.gate <- struct{}{}
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := guard.Score(short, Text(harmful)); !errors.Is(err, ErrDeadlineExceeded) {
		t.Error(err)
	}
	for range concurrency {
		<-guard.gate
	}
}

func TestWhatIsClosedIsAnInvalidHandle(t *testing.T) {
	guard := open(t)
	stream, err := guard.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := guard.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if result, err := guard.Score(t.Context(), Text(harmful)); !errors.Is(err, ErrInvalidHandle) || result != nil {
		t.Error(result, err)
	}
	if _, err := guard.NewStream(); !errors.Is(err, ErrInvalidHandle) {
		t.Error(err)
	}
	// A stream outlives its guard.
	if result, err := stream.Push(t.Context(), harmful); err != nil || result.Crossing == nil {
		t.Error(result, err)
	}
	for range 2 {
		if err := stream.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stream.Push(t.Context(), "."); !errors.Is(err, ErrInvalidHandle) {
		t.Error(err)
	}
}

func TestGarbageIsFreed(t *testing.T) {
	guard := open(t)
	for range 50 {
		if _, err := guard.NewStream(); err != nil {
			t.Fatal(err)
		}
	}
	for range 200 {
		runtime.GC()
		stats, err := guard.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if stats.Streams == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("streams that nobody has are still open")
}

func TestAStreamBelongsToOneGoroutine(t *testing.T) {
	guard := open(t)
	stream, err := guard.NewStream(Windows{Stride: 16})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := stream.Push(ctx, long)
		done <- err
	}()
	for len(guard.gate) == 0 {
		runtime.Gosched()
	}
	time.Sleep(20 * time.Millisecond)
	if _, err := stream.Push(t.Context(), "."); !errors.Is(err, ErrInUse) {
		t.Error(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, ErrCancelled) {
		t.Error(err)
	}
}

func TestTokenScoresEndInTheScore(t *testing.T) {
	stream, err := open(t).NewStream(WithPrompt("What do you need?"))
	if err != nil {
		t.Fatal(err)
	}
	result, err := stream.Push(t.Context(), harmful, TokenScores(100))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(result.TokenScores); n != result.TokenScoresCount || result.FirstScored+n != result.Tokens ||
		result.TokenScores[n-1] != result.Score {
		t.Errorf("%+v", result)
	}
	if result, err = stream.Push(t.Context(), " one two three", TokenScores(1)); err != nil || len(result.TokenScores) != 1 || result.TokenScoresCount < 2 {
		t.Errorf("%+v, %v", result, err)
	}
}

func TestInformation(t *testing.T) {
	guard := open(t)
	if err := guard.Warmup(t.Context()); err != nil {
		t.Error(err)
	}
	info, err := guard.Info()
	if err != nil || info.Threads != 2 || info.MaxLength != 512 || info.DefaultThreshold != 0.5 || info.Device != "cpu" || info.Dtype != "f32" {
		t.Errorf("%+v, %v", info, err)
	}
	var told map[string]any
	text, err := guard.InfoJSON()
	if err != nil || json.Unmarshal(text, &told) != nil || told["max_length"] != float64(info.MaxLength) {
		t.Errorf("%s, %v", text, err)
	}
	result, err := guard.Score(t.Context(), Text(harmful))
	if err != nil {
		t.Fatal(err)
	}
	record, err := guard.AuditJSON(Text(harmful), result)
	told = nil
	if err != nil || json.Unmarshal(record, &told) != nil || told["score"] != result.Score || bytes.Contains(record, []byte("pipe")) {
		t.Errorf("%s, %v", record, err)
	}
	if record, err := guard.AuditJSON(Text(harmful), nil); !errors.Is(err, ErrInvalidArgument) || record != nil {
		t.Errorf("%s, %v", record, err)
	}
	stats, err := guard.Stats()
	if err != nil || stats.Requests != 2 || stats.Texts != 2 || stats.Harmful != 1 || stats.Tokens == 0 || len(stats.Errors) != 0 {
		t.Errorf("%+v, %v", stats, err)
	}
	prometheus, err := guard.StatsPrometheus()
	if err != nil || !bytes.Contains(prometheus, []byte("\n# TYPE ")) {
		t.Errorf("%s, %v", prometheus, err)
	}
}

func TestTheLogArrives(t *testing.T) {
	var lines atomic.Int32
	if err := SetLog(LogTrace, func(level LogLevel, message string) {
		if level < LogError || level > LogTrace || message == "" {
			t.Errorf("level %d, %q", level, message)
		}
		lines.Add(1)
	}); err != nil {
		t.Fatal(err)
	}
	open(t)
	if err := SetLog(0, nil); err != nil {
		t.Fatal(err)
	}
	before := lines.Load()
	if before == 0 {
		t.Error("no line")
	}
	open(t)
	if lines.Load() != before {
		t.Error("a line after the end")
	}
	if err := SetLog(99, func(LogLevel, string) {}); !errors.Is(err, ErrInvalidArgument) {
		t.Error(err)
	}
}

func TestOptionsOutOfRange(t *testing.T) {
	for name, option := range map[string]Option{
		"max_batch": WithMaxBatch(-1), "threads": WithThreads(-1), "concurrency": WithConcurrency(0),
	} {
		guard, err := Open(t.Context(), filepath.Join(root, "models/demo"), option)
		if !errors.Is(err, ErrInvalidArgument) || !strings.Contains(err.Error(), name) || guard != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A guard is replaced while it is in use: new calls take the new one, calls inside the old one finish,
// and one that came too late to the old one takes the new one.
func TestAGuardIsReplacedUnderLoad(t *testing.T) {
	var current atomic.Pointer[Guard]
	current.Store(open(t))
	score := func(ctx context.Context, input Input) (*Result, error) {
		for {
			guard := current.Load()
			result, err := guard.Score(ctx, input)
			if errors.Is(err, ErrInvalidHandle) && current.Load() != guard {
				continue
			}
			return result, err
		}
	}
	expected, err := score(t.Context(), Text(harmful))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var calls atomic.Int32
	var wait sync.WaitGroup
	for range 16 {
		wait.Go(func() {
			for ctx.Err() == nil {
				result, err := score(t.Context(), Text(harmful))
				if err != nil || *result != *expected {
					t.Error(result, err)
					return
				}
				calls.Add(1)
			}
		})
	}
	for range 10 {
		before := calls.Load()
		for calls.Load() < before+20 && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
		if err := current.Swap(open(t)).Close(); err != nil {
			t.Error(err)
		}
	}
	cancel()
	wait.Wait()
}
