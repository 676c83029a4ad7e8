//go:build cgo && !siren_purego

package siren

// #include <stddef.h>
// #include <stdint.h>
import "C"

import "unsafe"

//export sirenGoProgress
func sirenGoProgress(id C.uintptr_t, file *C.char, length C.size_t, done, total C.uint64_t) {
	onProgress(uintptr(id), unsafe.Slice((*byte)(unsafe.Pointer(file)), length), uint64(done), uint64(total))
}

//export sirenGoLog
func sirenGoLog(id C.uintptr_t, level C.int32_t, message *C.char, length C.size_t) {
	onLog(uintptr(id), int32(level), unsafe.Slice((*byte)(unsafe.Pointer(message)), length))
}
