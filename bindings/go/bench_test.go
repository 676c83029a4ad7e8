package siren

import (
	"context"
	"testing"
)

// What a call costs above the library's own work: a text that is refused before it is run.
func BenchmarkRefused(b *testing.B) {
	guard := open(b, WithMaxTextBytes(8))
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	for _, run := range []struct {
		name string
		ctx  context.Context
	}{{"background", context.Background()}, {"cancellable", ctx}} {
		b.Run(run.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := guard.Score(run.ctx, Text("more than 8 bytes")); err == nil {
					b.Fatal("no error")
				}
			}
		})
	}
}

// One short text, alone and 1,000 together.
func BenchmarkScore(b *testing.B) {
	guard := open(b)
	b.Run("1", func(b *testing.B) {
		for b.Loop() {
			if _, err := guard.Score(context.Background(), Text("one two three")); err != nil {
				b.Fatal(err)
			}
		}
	})
	inputs := make([]Input, 1000)
	for i := range inputs {
		inputs[i] = Text("one two three")
	}
	b.Run("1000", func(b *testing.B) {
		for b.Loop() {
			if _, err := guard.ScoreBatch(context.Background(), inputs); err != nil {
				b.Fatal(err)
			}
		}
	})
}
