//go:build cgo && !siren_purego && siren_static

package siren

// #cgo pkg-config: siren-static
import "C"
