package siren

import (
	"errors"
	"os"
	"runtime"
	"testing"
	"time"
	"unsafe"
)

// A panic inside the library, as `make abi-panics` plants it, breaks one guard for good: every call says so and
// gives no verdict, no other guard is touched, and what nobody has any more is freed as garbage all the same.
func TestAPoisonedGuardSaysSoAndIsFreedAsGarbage(t *testing.T) {
	if os.Getenv("SIREN_PLANTED_PANICS") == "" {
		t.Skip("needs a library with planted panics: make abi-panics")
	}
	other := open(t)
	expected, err := other.Score(t.Context(), Text(harmful))
	if err != nil {
		t.Fatal(err)
	}
	handle := poisoned(t)
	if result, err := other.Score(t.Context(), Text(harmful)); err != nil || *result != *expected {
		t.Error(result, err)
	}
	for range 200 {
		runtime.GC()
		info, failed := cGuardInfo{structSize: uint32(unsafe.Sizeof(cGuardInfo{}))}, newError()
		if Status(nativeInfo(handle, &info, &failed)) == ErrInvalidHandle {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("a poisoned guard that nobody has is still open")
}

// poisoned gives the handle of a guard that is poisoned and forgotten.
func poisoned(t *testing.T) uintptr {
	t.Helper()
	guard, err := Open(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	stream, err := guard.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"siren: planted panic in the worker", harmful} {
		if result, err := guard.Score(t.Context(), Text(text)); result != nil || !errors.Is(err, ErrPoisoned) {
			t.Errorf("%q: %v, %v", text, result, err)
		}
	}
	if results, err := guard.ScoreBatch(t.Context(), []Input{Text(harmful)}); results != nil || !errors.Is(err, ErrPoisoned) {
		t.Errorf("a batch: %v, %v", results, err)
	}
	if result, err := stream.Push(t.Context(), harmful); result != nil || !errors.Is(err, ErrPoisoned) {
		t.Errorf("a push: %v, %v", result, err)
	}
	if _, err := guard.NewStream(); !errors.Is(err, ErrPoisoned) {
		t.Errorf("a new stream: %v", err)
	}
	return guard.handle
}
