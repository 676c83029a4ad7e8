// Package siren tells how harmful a text is, inside the process: it binds libsiren, which runs
// guards of the SIREN kind.
//
// A verdict exists only where a text was scored: calls that fail return a nil result, and no value
// of this package reads as "safe" by default. Errors are *Error, and errors.Is(err, siren.ErrBusy)
// tells them apart.
//
// The package is built with cgo against an installed libsiren (pkg-config must find siren.pc), which
// is linked as a shared library or, with the build tag siren_static, into the program. Without cgo, or
// with the build tag siren_purego, the shared library is loaded when it is first needed.
package siren

import (
	"fmt"
	"sync"
)

// load finds the library, once, and checks that it is one that this package knows.
var load = sync.OnceValue(func() error {
	if err := nativeLoad(); err != nil {
		return err
	}
	version := nativeABIVersion()
	if major, minor := version>>16, version&0xFFFF; major != abiMajor || minor < abiMinor {
		return fmt.Errorf("siren: the library's ABI is %d.%d, expected %d.%d or a later minor version", major, minor, abiMajor, abiMinor)
	}
	return nil
})

// Version is the version of the library, such as "0.1.0".
func Version() (string, error) {
	if err := load(); err != nil {
		return "", err
	}
	return nativeVersion(), nil
}
