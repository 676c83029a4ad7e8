package siren

import (
	"sync"
	"sync/atomic"
)

// Functions of Go's that the library calls back, by the number that it is given for each.
var (
	callbacks    sync.Map
	lastCallback atomic.Uintptr
)

func register(callback any) uintptr {
	id := lastCallback.Add(1)
	callbacks.Store(id, callback)
	return id
}

func onProgress(id uintptr, file []byte, done, total uint64) {
	if callback, ok := callbacks.Load(id); ok {
		callback.(func(string, uint64, uint64))(string(file), done, total)
	}
}

func onLog(id uintptr, level int32, message []byte) {
	// One that has been replaced is gone.
	if callback, ok := callbacks.Load(id); ok {
		callback.(func(LogLevel, string))(LogLevel(level), string(message))
	}
}

// LogLevel is how much a line of the library's log matters.
type LogLevel int32

// The levels, each of which takes in those before it.
const (
	LogError LogLevel = 1 + iota
	LogWarning
	LogInfo
	LogDebug
	LogTrace
)

var logging struct {
	sync.Mutex
	id uintptr
}

// SetLog sends the library's log lines up to level to log; nil ends that. There is one for the whole
// process. It is called from any thread, and must not call into this package.
func SetLog(level LogLevel, log func(level LogLevel, message string)) error {
	if err := load(); err != nil {
		return err
	}
	logging.Lock()
	defer logging.Unlock()
	id := uintptr(0)
	if log != nil {
		id = register(log)
	}
	failed := newError()
	if err := check(nativeLogSet(id, int32(level), &failed), &failed); err != nil {
		callbacks.Delete(id)
		return err
	}
	callbacks.Delete(logging.id)
	logging.id = id
	return nil
}
