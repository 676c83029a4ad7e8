//go:build cgo && !siren_purego

package siren

/*
#include <stdint.h>
#include <siren.h>

#if SIREN_ABI_MAJOR != 0
#error "this package is for version 0 of libsiren's ABI"
#endif

extern void sirenGoProgress(uintptr_t id, char *file, size_t length, uint64_t done, uint64_t total);
extern void sirenGoLog(uintptr_t id, int32_t level, char *message, size_t length);

static void go_on_progress(void *id, const char *file, size_t length, uint64_t done, uint64_t total) {
	sirenGoProgress((uintptr_t)id, (char *)file, length, done, total);
}
static void go_on_log(void *id, int32_t level, const char *message, size_t length) {
	sirenGoLog((uintptr_t)id, level, (char *)message, length);
}
static uintptr_t go_progress(void) { return (uintptr_t)go_on_progress; }

// Handles are numbers: as Go pointers they would be the garbage collector's business.
static uint32_t go_abi_version(void) { return siren_abi_version(); }
static int32_t go_open(const siren_open_options *o, uintptr_t *guard, siren_error *e) {
	siren_guard *opened = 0;
	int32_t status = siren_open(o, &opened, e);
	*guard = (uintptr_t)opened;
	return status;
}
static int32_t go_free(uintptr_t g) { return siren_free((siren_guard *)g); }
static int32_t go_warmup(uintptr_t g, siren_error *e) { return siren_warmup((siren_guard *)g, e); }
static int32_t go_score(uintptr_t g, const siren_input *i, const siren_score_options *o, siren_result *r, siren_error *e) {
	return siren_score((siren_guard *)g, i, o, r, e);
}
static int32_t go_score_batch(uintptr_t g, const siren_input *i, size_t n, const siren_score_options *o,
		siren_result *r, siren_error *errors, siren_error *e) {
	return siren_score_batch((siren_guard *)g, i, n, o, r, errors, e);
}
static int32_t go_info(uintptr_t g, siren_guard_info *i, siren_error *e) { return siren_info((siren_guard *)g, i, e); }
static int32_t go_stats(uintptr_t g, siren_guard_stats *s, siren_error *e) { return siren_stats((siren_guard *)g, s, e); }
static int32_t go_info_json(uintptr_t g, char *b, size_t n, size_t *length, siren_error *e) {
	return siren_info_json((siren_guard *)g, b, n, length, e);
}
static int32_t go_stats_prometheus(uintptr_t g, char *b, size_t n, size_t *length, siren_error *e) {
	return siren_stats_prometheus((siren_guard *)g, b, n, length, e);
}
static int32_t go_audit_json(uintptr_t g, const siren_input *i, const siren_result *r, char *b, size_t n, size_t *length, siren_error *e) {
	return siren_audit_json((siren_guard *)g, i, r, b, n, length, e);
}
static int32_t go_token_new(uintptr_t *token, siren_error *e) {
	siren_cancel_token *made = 0;
	int32_t status = siren_cancel_token_new(&made, e);
	*token = (uintptr_t)made;
	return status;
}
static int32_t go_cancel(uintptr_t t) { return siren_cancel((siren_cancel_token *)t, 0); }
static int32_t go_token_free(uintptr_t t) { return siren_cancel_token_free((siren_cancel_token *)t); }
static int32_t go_stream_new(uintptr_t g, const siren_stream_options *o, uintptr_t *stream, siren_error *e) {
	siren_stream *made = 0;
	int32_t status = siren_stream_new((siren_guard *)g, o, &made, e);
	*stream = (uintptr_t)made;
	return status;
}
static int32_t go_stream_push(uintptr_t s, const char *data, size_t n, const siren_push_options *o, siren_push_result *r, siren_error *e) {
	return siren_stream_push((siren_stream *)s, data, n, o, r, e);
}
static int32_t go_stream_finish(uintptr_t s, const siren_push_options *o, siren_push_result *r, siren_error *e) {
	return siren_stream_finish((siren_stream *)s, o, r, e);
}
static int32_t go_stream_reset(uintptr_t s, siren_error *e) { return siren_stream_reset((siren_stream *)s, e); }
static int32_t go_stream_fork(uintptr_t s, uintptr_t *forked, siren_error *e) {
	siren_stream *made = 0;
	int32_t status = siren_stream_fork((siren_stream *)s, &made, e);
	*forked = (uintptr_t)made;
	return status;
}
static int32_t go_stream_free(uintptr_t s) { return siren_stream_free((siren_stream *)s); }
static int32_t go_log_set(int on, uintptr_t id, int32_t level, siren_error *e) {
	return siren_log_set(on ? go_on_log : 0, (void *)id, level, e);
}
*/
import "C"

import "unsafe"

// The linker has found the library.
func nativeLoad() error { return nil }

func nativeABIVersion() uint32             { return uint32(C.go_abi_version()) }
func nativeVersion() string                { return C.GoString(C.siren_version()) }
func nativeStatusName(status int32) string { return C.GoString(C.siren_status_name(C.int32_t(status))) }
func nativeProgress() uintptr              { return uintptr(C.go_progress()) }

func nativeOpen(o *cOpenOptions, guard *uintptr, e *cError) int32 {
	return int32(C.go_open((*C.siren_open_options)(unsafe.Pointer(o)), (*C.uintptr_t)(unsafe.Pointer(guard)), cgoError(e)))
}

func nativeFree(guard uintptr) int32 { return int32(C.go_free(C.uintptr_t(guard))) }

func nativeWarmup(guard uintptr, e *cError) int32 {
	return int32(C.go_warmup(C.uintptr_t(guard), cgoError(e)))
}

func nativeScore(guard uintptr, in *cInput, o *cScoreOptions, r *cResult, e *cError) int32 {
	return int32(C.go_score(C.uintptr_t(guard), (*C.siren_input)(unsafe.Pointer(in)), (*C.siren_score_options)(unsafe.Pointer(o)),
		(*C.siren_result)(unsafe.Pointer(r)), cgoError(e)))
}

func nativeScoreBatch(guard uintptr, in []cInput, o *cScoreOptions, r []cResult, errors []cError, e *cError) int32 {
	return int32(C.go_score_batch(C.uintptr_t(guard), (*C.siren_input)(unsafe.Pointer(unsafe.SliceData(in))), C.size_t(len(in)),
		(*C.siren_score_options)(unsafe.Pointer(o)), (*C.siren_result)(unsafe.Pointer(unsafe.SliceData(r))),
		cgoError(unsafe.SliceData(errors)), cgoError(e)))
}

func nativeInfo(guard uintptr, info *cGuardInfo, e *cError) int32 {
	return int32(C.go_info(C.uintptr_t(guard), (*C.siren_guard_info)(unsafe.Pointer(info)), cgoError(e)))
}

func nativeStats(guard uintptr, stats *cGuardStats, e *cError) int32 {
	return int32(C.go_stats(C.uintptr_t(guard), (*C.siren_guard_stats)(unsafe.Pointer(stats)), cgoError(e)))
}

func nativeInfoJSON(guard uintptr, buffer []byte, length *uintptr, e *cError) int32 {
	return int32(C.go_info_json(C.uintptr_t(guard), cgoBytes(buffer), C.size_t(len(buffer)), (*C.size_t)(unsafe.Pointer(length)), cgoError(e)))
}

func nativeStatsPrometheus(guard uintptr, buffer []byte, length *uintptr, e *cError) int32 {
	return int32(C.go_stats_prometheus(C.uintptr_t(guard), cgoBytes(buffer), C.size_t(len(buffer)), (*C.size_t)(unsafe.Pointer(length)), cgoError(e)))
}

func nativeAuditJSON(guard uintptr, in *cInput, r *cResult, buffer []byte, length *uintptr, e *cError) int32 {
	return int32(C.go_audit_json(C.uintptr_t(guard), (*C.siren_input)(unsafe.Pointer(in)), (*C.siren_result)(unsafe.Pointer(r)),
		cgoBytes(buffer), C.size_t(len(buffer)), (*C.size_t)(unsafe.Pointer(length)), cgoError(e)))
}

func nativeCancelTokenNew(token *uintptr, e *cError) int32 {
	return int32(C.go_token_new((*C.uintptr_t)(unsafe.Pointer(token)), cgoError(e)))
}

func nativeCancel(token uintptr) int32          { return int32(C.go_cancel(C.uintptr_t(token))) }
func nativeCancelTokenFree(token uintptr) int32 { return int32(C.go_token_free(C.uintptr_t(token))) }

func nativeStreamNew(guard uintptr, o *cStreamOptions, stream *uintptr, e *cError) int32 {
	return int32(C.go_stream_new(C.uintptr_t(guard), (*C.siren_stream_options)(unsafe.Pointer(o)), (*C.uintptr_t)(unsafe.Pointer(stream)), cgoError(e)))
}

func nativeStreamPush(stream uintptr, data unsafe.Pointer, length int, o *cPushOptions, r *cPushResult, e *cError) int32 {
	return int32(C.go_stream_push(C.uintptr_t(stream), (*C.char)(data), C.size_t(length), (*C.siren_push_options)(unsafe.Pointer(o)),
		(*C.siren_push_result)(unsafe.Pointer(r)), cgoError(e)))
}

func nativeStreamFinish(stream uintptr, o *cPushOptions, r *cPushResult, e *cError) int32 {
	return int32(C.go_stream_finish(C.uintptr_t(stream), (*C.siren_push_options)(unsafe.Pointer(o)), (*C.siren_push_result)(unsafe.Pointer(r)), cgoError(e)))
}

func nativeStreamReset(stream uintptr, e *cError) int32 {
	return int32(C.go_stream_reset(C.uintptr_t(stream), cgoError(e)))
}

func nativeStreamFork(stream uintptr, forked *uintptr, e *cError) int32 {
	return int32(C.go_stream_fork(C.uintptr_t(stream), (*C.uintptr_t)(unsafe.Pointer(forked)), cgoError(e)))
}

func nativeStreamFree(stream uintptr) int32 { return int32(C.go_stream_free(C.uintptr_t(stream))) }

func nativeLogSet(id uintptr, level int32, e *cError) int32 {
	on := C.int(0)
	if id != 0 {
		on = 1
	}
	return int32(C.go_log_set(on, C.uintptr_t(id), C.int32_t(level), cgoError(e)))
}

func cgoError(e *cError) *C.siren_error { return (*C.siren_error)(unsafe.Pointer(e)) }
func cgoBytes(b []byte) *C.char         { return (*C.char)(unsafe.Pointer(unsafe.SliceData(b))) }
