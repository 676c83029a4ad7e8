package siren

import (
	"runtime"
	"unsafe"
)

// Input is what is scored. Text, Exchange, Prompt and Response make one; the zero Input is refused
// with ErrInvalidArgument. It refers to the strings and slices that it was made of and copies
// nothing: a slice must not change while a call runs.
type Input struct {
	text, prompt, response part
}

// part is a text; data is nil for an absent one.
type part struct {
	data   *byte
	length int
}

// noBytes is where empty texts lie: absent ones are nil.
var noBytes byte

func partOf[T ~string | ~[]byte](text T) part {
	if len(text) == 0 {
		return part{data: &noBytes}
	}
	// A string and a slice both start with their pointer.
	return part{data: *(**byte)(unsafe.Pointer(&text)), length: len(text)}
}

// Text is one text: UTF-8, else scoring it fails with ErrInvalidUTF8.
func Text[T ~string | ~[]byte](text T) Input { return Input{text: partOf(text)} }

// Exchange is what a model was asked, and what it answered; the guard reads the two joined with one
// newline.
func Exchange[P, R ~string | ~[]byte](prompt P, response R) Input {
	return Input{prompt: partOf(prompt), response: partOf(response)}
}

// Prompt is what a model was asked, without an answer.
func Prompt[T ~string | ~[]byte](prompt T) Input { return Input{prompt: partOf(prompt)} }

// Response is what a model answered, to whatever it was.
func Response[T ~string | ~[]byte](response T) Input { return Input{response: partOf(response)} }

// c is the text for a call of the library; the pinner holds it until the call is over.
func (p part) c(pinner *runtime.Pinner) cText {
	if p.data == nil {
		return cText{}
	}
	pinner.Pin(p.data)
	return cText{data: unsafe.Pointer(p.data), length: uintptr(p.length)}
}

func (in *Input) c(pinner *runtime.Pinner) cInput {
	return cInput{
		structSize: uint32(unsafe.Sizeof(cInput{})),
		text:       in.text.c(pinner),
		prompt:     in.prompt.c(pinner),
		response:   in.response.c(pinner),
	}
}
