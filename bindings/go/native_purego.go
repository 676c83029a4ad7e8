//go:build !cgo || siren_purego

package siren

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"github.com/ebitengine/purego"
)

const libraryName = "libsiren.so.0"

// The functions of siren.h, in the loaded library.
var symbols struct {
	abiVersion, version, statusName                           uintptr
	open, free, warmup, score, scoreBatch                     uintptr
	info, stats, infoJSON, statsPrometheus, auditJSON, logSet uintptr
	tokenNew, cancel, tokenFree                               uintptr
	streamNew, push, finish, reset, fork, streamFree          uintptr
}

var progressCallback, logCallback uintptr

// nativeLoad opens the library: the one that SIREN_LIBRARY names, or the one beside the program, or
// what the system's loader finds.
func nativeLoad() error {
	library, err := find()
	if err != nil {
		return err
	}
	for name, symbol := range map[string]*uintptr{
		"siren_abi_version":       &symbols.abiVersion,
		"siren_version":           &symbols.version,
		"siren_status_name":       &symbols.statusName,
		"siren_open":              &symbols.open,
		"siren_free":              &symbols.free,
		"siren_warmup":            &symbols.warmup,
		"siren_score":             &symbols.score,
		"siren_score_batch":       &symbols.scoreBatch,
		"siren_info":              &symbols.info,
		"siren_stats":             &symbols.stats,
		"siren_info_json":         &symbols.infoJSON,
		"siren_stats_prometheus":  &symbols.statsPrometheus,
		"siren_audit_json":        &symbols.auditJSON,
		"siren_log_set":           &symbols.logSet,
		"siren_cancel_token_new":  &symbols.tokenNew,
		"siren_cancel":            &symbols.cancel,
		"siren_cancel_token_free": &symbols.tokenFree,
		"siren_stream_new":        &symbols.streamNew,
		"siren_stream_push":       &symbols.push,
		"siren_stream_finish":     &symbols.finish,
		"siren_stream_reset":      &symbols.reset,
		"siren_stream_fork":       &symbols.fork,
		"siren_stream_free":       &symbols.streamFree,
	} {
		if *symbol, err = purego.Dlsym(library, name); err != nil {
			return fmt.Errorf("siren: the library lacks %s: %w", name, err)
		}
	}
	progressCallback = purego.NewCallback(func(id uintptr, file *byte, length uintptr, done, total uint64) {
		onProgress(id, unsafe.Slice(file, length), done, total)
	})
	logCallback = purego.NewCallback(func(id uintptr, level int32, message *byte, length uintptr) {
		onLog(id, level, unsafe.Slice(message, length))
	})
	return nil
}

func find() (uintptr, error) {
	const mode = purego.RTLD_NOW | purego.RTLD_LOCAL
	if path := os.Getenv("SIREN_LIBRARY"); path != "" {
		library, err := purego.Dlopen(path, mode)
		if err != nil {
			return 0, fmt.Errorf("siren: SIREN_LIBRARY cannot be loaded: %w", err)
		}
		return library, nil
	}
	var failures []error
	if program, err := os.Executable(); err == nil {
		path := filepath.Join(filepath.Dir(program), libraryName)
		library, err := purego.Dlopen(path, mode)
		if err == nil {
			return library, nil
		}
		failures = append(failures, fmt.Errorf("beside the program: %w", err))
	}
	library, err := purego.Dlopen(libraryName, mode)
	if err == nil {
		return library, nil
	}
	failures = append(failures, fmt.Errorf("where the system looks: %w", err))
	return 0, fmt.Errorf("siren: %s is not found (SIREN_LIBRARY may name it): %w", libraryName, errors.Join(failures...))
}

func nativeABIVersion() uint32 {
	version, _, _ := purego.SyscallN(symbols.abiVersion)
	return uint32(version)
}

func nativeVersion() string {
	text, _, _ := purego.SyscallN(symbols.version)
	return goString(text)
}

func nativeStatusName(status int32) string {
	text, _, _ := purego.SyscallN(symbols.statusName, uintptr(uint32(status)))
	return goString(text)
}

func nativeProgress() uintptr { return progressCallback }

func nativeOpen(o *cOpenOptions, guard *uintptr, e *cError) int32 {
	status, _, _ := purego.SyscallN(symbols.open, uintptr(unsafe.Pointer(o)), uintptr(unsafe.Pointer(guard)), uintptr(unsafe.Pointer(e)))
	runtime.KeepAlive(o)
	return int32(status)
}

func nativeFree(guard uintptr) int32 { return call(symbols.free, guard) }

func nativeWarmup(guard uintptr, e *cError) int32 {
	status, _, _ := purego.SyscallN(symbols.warmup, guard, uintptr(unsafe.Pointer(e)))
	return int32(status)
}

func nativeScore(guard uintptr, in *cInput, o *cScoreOptions, r *cResult, e *cError) int32 {
	status, _, _ := purego.SyscallN(symbols.score, guard, uintptr(unsafe.Pointer(in)), uintptr(unsafe.Pointer(o)),
		uintptr(unsafe.Pointer(r)), uintptr(unsafe.Pointer(e)))
	runtime.KeepAlive(in)
	return int32(status)
}

func nativeScoreBatch(guard uintptr, in []cInput, o *cScoreOptions, r []cResult, errors []cError, e *cError) int32 {
	status, _, _ := purego.SyscallN(symbols.scoreBatch, guard, uintptr(unsafe.Pointer(unsafe.SliceData(in))), uintptr(len(in)),
		uintptr(unsafe.Pointer(o)), uintptr(unsafe.Pointer(unsafe.SliceData(r))), uintptr(unsafe.Pointer(unsafe.SliceData(errors))),
		uintptr(unsafe.Pointer(e)))
	runtime.KeepAlive(in)
	return int32(status)
}

func nativeInfo(guard uintptr, info *cGuardInfo, e *cError) int32 {
	status, _, _ := purego.SyscallN(symbols.info, guard, uintptr(unsafe.Pointer(info)), uintptr(unsafe.Pointer(e)))
	return int32(status)
}

func nativeStats(guard uintptr, stats *cGuardStats, e *cError) int32 {
	status, _, _ := purego.SyscallN(symbols.stats, guard, uintptr(unsafe.Pointer(stats)), uintptr(unsafe.Pointer(e)))
	return int32(status)
}

func nativeInfoJSON(guard uintptr, buffer []byte, length *uintptr, e *cError) int32 {
	status, _, _ := purego.SyscallN(symbols.infoJSON, guard, uintptr(unsafe.Pointer(unsafe.SliceData(buffer))), uintptr(len(buffer)),
		uintptr(unsafe.Pointer(length)), uintptr(unsafe.Pointer(e)))
	return int32(status)
}

func nativeStatsPrometheus(guard uintptr, buffer []byte, length *uintptr, e *cError) int32 {
	status, _, _ := purego.SyscallN(symbols.statsPrometheus, guard, uintptr(unsafe.Pointer(unsafe.SliceData(buffer))), uintptr(len(buffer)),
		uintptr(unsafe.Pointer(length)), uintptr(unsafe.Pointer(e)))
	return int32(status)
}

func nativeAuditJSON(guard uintptr, in *cInput, r *cResult, buffer []byte, length *uintptr, e *cError) int32 {
	status, _, _ := purego.SyscallN(symbols.auditJSON, guard, uintptr(unsafe.Pointer(in)), uintptr(unsafe.Pointer(r)),
		uintptr(unsafe.Pointer(unsafe.SliceData(buffer))), uintptr(len(buffer)), uintptr(unsafe.Pointer(length)), uintptr(unsafe.Pointer(e)))
	runtime.KeepAlive(in)
	return int32(status)
}

func nativeCancelTokenNew(token *uintptr, e *cError) int32 {
	status, _, _ := purego.SyscallN(symbols.tokenNew, uintptr(unsafe.Pointer(token)), uintptr(unsafe.Pointer(e)))
	return int32(status)
}

func nativeCancel(token uintptr) int32          { return call(symbols.cancel, token, 0) }
func nativeCancelTokenFree(token uintptr) int32 { return call(symbols.tokenFree, token) }

func nativeStreamNew(guard uintptr, o *cStreamOptions, stream *uintptr, e *cError) int32 {
	status, _, _ := purego.SyscallN(symbols.streamNew, guard, uintptr(unsafe.Pointer(o)), uintptr(unsafe.Pointer(stream)), uintptr(unsafe.Pointer(e)))
	runtime.KeepAlive(o)
	return int32(status)
}

func nativeStreamPush(stream uintptr, data unsafe.Pointer, length int, o *cPushOptions, r *cPushResult, e *cError) int32 {
	status, _, _ := purego.SyscallN(symbols.push, stream, uintptr(data), uintptr(length), uintptr(unsafe.Pointer(o)),
		uintptr(unsafe.Pointer(r)), uintptr(unsafe.Pointer(e)))
	runtime.KeepAlive(o)
	return int32(status)
}

func nativeStreamFinish(stream uintptr, o *cPushOptions, r *cPushResult, e *cError) int32 {
	status, _, _ := purego.SyscallN(symbols.finish, stream, uintptr(unsafe.Pointer(o)), uintptr(unsafe.Pointer(r)), uintptr(unsafe.Pointer(e)))
	runtime.KeepAlive(o)
	return int32(status)
}

func nativeStreamReset(stream uintptr, e *cError) int32 {
	status, _, _ := purego.SyscallN(symbols.reset, stream, uintptr(unsafe.Pointer(e)))
	return int32(status)
}

func nativeStreamFork(stream uintptr, forked *uintptr, e *cError) int32 {
	status, _, _ := purego.SyscallN(symbols.fork, stream, uintptr(unsafe.Pointer(forked)), uintptr(unsafe.Pointer(e)))
	return int32(status)
}

func nativeStreamFree(stream uintptr) int32 { return call(symbols.streamFree, stream) }

func nativeLogSet(id uintptr, level int32, e *cError) int32 {
	callback := uintptr(0)
	if id != 0 {
		callback = logCallback
	}
	status, _, _ := purego.SyscallN(symbols.logSet, callback, id, uintptr(uint32(level)), uintptr(unsafe.Pointer(e)))
	return int32(status)
}

// call is for functions that take no memory of Go's.
func call(function uintptr, arguments ...uintptr) int32 {
	status, _, _ := purego.SyscallN(function, arguments...)
	return int32(status)
}

// goString copies a static string of the library's.
func goString(address uintptr) string {
	// The address is C's, which the collector does not know; vet allows no direct conversion.
	start := *(*unsafe.Pointer)(unsafe.Pointer(&address))
	length := 0
	for *(*byte)(unsafe.Add(start, length)) != 0 {
		length++
	}
	return string(unsafe.Slice((*byte)(start), length))
}
