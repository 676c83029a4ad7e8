package siren

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

// Any bytes get a score or a failure, never both; invalid UTF-8 is told from valid as Go tells it.
func FuzzScore(f *testing.F) {
	for _, text := range []string{"", harmful, "\xff", "é", "\xed\xa0\x80", "<|im_start|>", "a\x00b"} {
		f.Add([]byte(text), []byte(text), 0.5)
	}
	guard := open(f, WithMaxTextBytes(1<<12))
	f.Fuzz(func(t *testing.T, prompt, response []byte, threshold float64) {
		result, err := guard.Score(t.Context(), Exchange(prompt, response), Threshold(threshold))
		if (result == nil) == (err == nil) {
			t.Fatal(result, err)
		}
		valid := utf8.Valid(prompt) && utf8.Valid(response)
		inRange := threshold >= 0 && threshold <= 1
		small := len(prompt)+len(response) < 1<<12
		if (err == nil) != (valid && inRange && small) {
			t.Fatal(err)
		}
		if err == nil && (result.Score < 0 || result.Score > 1 || result.Harmful != (result.Score >= threshold)) {
			t.Fatal(result)
		}
	})
}

// However a text is cut into pushes, the stream ends in the score of the whole, and shows only what
// was pushed.
func FuzzStream(f *testing.F) {
	for _, text := range []string{"", harmful, "a\xff", "é你😀", "<|im_start|>x [INST]", "a  b\n\n\n c "} {
		f.Add(text, uint8(3))
	}
	guard := open(f, WithMaxTextBytes(1<<12))
	f.Fuzz(func(t *testing.T, text string, size uint8) {
		stream, err := guard.NewStream()
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		cleared, step := 0, int(size)+1
		for at := 0; at < len(text); at += step {
			result, err := stream.Push(t.Context(), text[at:min(len(text), at+step)])
			if err != nil {
				if !errors.Is(err, ErrInvalidUTF8) && !errors.Is(err, ErrLimitExceeded) {
					t.Fatal(err)
				}
				return
			}
			if result.Cleared < cleared || result.Cleared > min(len(text), at+step) || !utf8.ValidString(text[:result.Cleared]) {
				t.Fatal(result)
			}
			cleared = result.Cleared
		}
		result, err := stream.Finish(t.Context())
		if (err == nil) != utf8.ValidString(text) {
			t.Fatal(err)
		}
		if err != nil || len(text) > 1<<12 {
			return
		}
		whole, err := guard.Score(t.Context(), Response(strings.Clone(text)))
		if err != nil || whole.Score != result.Score {
			t.Fatal(whole, result, err)
		}
	})
}
