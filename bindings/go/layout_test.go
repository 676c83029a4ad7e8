package siren

import (
	"reflect"
	"strings"
	"testing"
)

func TestLayouts(t *testing.T) {
	var abi struct {
		Structs map[string]struct {
			Size    uintptr
			Offsets map[string]uintptr
		}
	}
	readJSON(t, "include/siren-abi.json", &abi)
	structs := map[string]any{
		"siren_text":           cText{},
		"siren_error":          cError{},
		"siren_open_options":   cOpenOptions{},
		"siren_input":          cInput{},
		"siren_score_options":  cScoreOptions{},
		"siren_result":         cResult{},
		"siren_stream_options": cStreamOptions{},
		"siren_push_options":   cPushOptions{},
		"siren_push_result":    cPushResult{},
		"siren_guard_info":     cGuardInfo{},
		"siren_guard_stats":    cGuardStats{},
	}
	if len(structs) != len(abi.Structs) {
		t.Errorf("%d structs here, %d in the library", len(structs), len(abi.Structs))
	}
	for name, value := range structs {
		layout, ok := abi.Structs[name]
		if !ok {
			t.Errorf("%s is not in the library", name)
			continue
		}
		kind := reflect.TypeOf(value)
		if kind.Size() != layout.Size || kind.NumField() != len(layout.Offsets) {
			t.Errorf("%s: %d bytes and %d fields, expected %d and %d", name, kind.Size(), kind.NumField(), layout.Size, len(layout.Offsets))
		}
		for field, offset := range layout.Offsets {
			found, ok := kind.FieldByNameFunc(func(name string) bool {
				return strings.EqualFold(name, strings.ReplaceAll(field, "_", ""))
			})
			if !ok || found.Offset != offset {
				t.Errorf("%s.%s is at %d, expected %d", name, field, found.Offset, offset)
			}
		}
	}
}
