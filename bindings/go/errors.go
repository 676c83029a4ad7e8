package siren

import (
	"bytes"
	"context"
	"fmt"
	"unsafe"
)

// Status says why a call failed. The constants are the statuses of siren.h; each is an error, so
// that errors.Is(err, siren.ErrBusy) tells them apart.
type Status int32

// Why a call failed. siren.h says what each means.
const (
	ErrInvalidArgument  Status = 1
	ErrInvalidHandle    Status = 2
	ErrInvalidUTF8      Status = 3
	ErrNotFound         Status = 4
	ErrIO               Status = 5
	ErrInvalidModel     Status = 6
	ErrUnsupported      Status = 7
	ErrNetwork          Status = 8
	ErrUnauthorized     Status = 9
	ErrOffline          Status = 10
	ErrLimitExceeded    Status = 11
	ErrOutOfMemory      Status = 12
	ErrBusy             Status = 13
	ErrCancelled        Status = 14
	ErrDeadlineExceeded Status = 15
	ErrPoisoned         Status = 16
	ErrForked           Status = 17
	ErrNonFinite        Status = 18
	ErrInternal         Status = 19
	ErrInUse            Status = 20
)

// statusOK is the status of a call that succeeded; it is no error.
const statusOK Status = 0

// Error is the name of the status, such as "busy".
func (s Status) Error() string {
	if load() != nil {
		return fmt.Sprintf("status %d", int32(s))
	}
	return nativeStatusName(int32(s))
}

// Error is a failed call of the library. It holds no score: there is none.
type Error struct {
	// Status says what kind of failure it is.
	Status Status
	// Message says what was wrong and what was expected.
	Message string
	cause   error
}

func (e *Error) Error() string { return "siren: " + e.Status.Error() + ": " + e.Message }

// Is makes errors.Is(err, siren.ErrBusy) work.
func (e *Error) Is(target error) bool { return target == error(e.Status) }

// Unwrap is the context's error when the context ended the call, else nil.
func (e *Error) Unwrap() error { return e.cause }

func newError() cError { return cError{structSize: uint32(unsafe.Sizeof(cError{}))} }

// check is nil when status is that of a success.
func check(status int32, e *cError) error {
	if Status(status) == statusOK {
		return nil
	}
	message := e.message[:]
	if end := bytes.IndexByte(message, 0); end >= 0 {
		message = message[:end]
	}
	return &Error{Status: Status(status), Message: string(bytes.ToValidUTF8(message, nil))}
}

// checkContext is check for a call that ran under ctx.
func checkContext(ctx context.Context, status int32, e *cError) error {
	err := check(status, e)
	if failed, ok := err.(*Error); ok {
		switch failed.Status {
		case ErrCancelled:
			failed.cause = context.Cause(ctx)
		case ErrDeadlineExceeded:
			// The library's clock may be ahead of the context's.
			if failed.cause = context.Cause(ctx); failed.cause == nil {
				failed.cause = context.DeadlineExceeded
			}
		}
	}
	return err
}

// ended is the failure of a call whose context has ended before it reached the library.
func ended(ctx context.Context) error {
	failed := &Error{Status: ErrCancelled, Message: "the context was cancelled before the call", cause: context.Cause(ctx)}
	if ctx.Err() == context.DeadlineExceeded {
		failed.Status, failed.Message = ErrDeadlineExceeded, "the deadline passed before the call"
	}
	return failed
}
