package siren

import (
	"fmt"
	"runtime"
	"unsafe"
)

// Option is how a guard is opened; what is not said is as siren.h says.
type Option func(*opening)

// opening is what the options of Open make.
type opening struct {
	options     cOpenOptions
	texts       map[*cText]string
	concurrency int
	progress    func(file string, done, total uint64)
	err         error
}

func invalid(format string, arguments ...any) error {
	return &Error{Status: ErrInvalidArgument, Message: fmt.Sprintf(format, arguments...)}
}

func textOption(field func(*cOpenOptions) *cText, value string) Option {
	return func(o *opening) { o.texts[field(&o.options)] = value }
}

func countOption(name string, field func(*cOpenOptions) *uint64, value int64) Option {
	return func(o *opening) {
		if value < 0 {
			o.err = invalid("%s is %d, expected 0 (the default) or more", name, value)
			return
		}
		*field(&o.options) = uint64(value)
	}
}

func flagOption(field func(*cOpenOptions) *uint32) Option {
	return func(o *opening) { *field(&o.options) = 1 }
}

// WithBackbone names the backbone's directory, repository or GGUF file.
func WithBackbone(name string) Option {
	return textOption(func(o *cOpenOptions) *cText { return &o.backbone }, name)
}

// WithDevice is "auto", "cpu", "cuda" or "cuda:N".
func WithDevice(device string) Option {
	return textOption(func(o *cOpenOptions) *cText { return &o.device }, device)
}

// WithDtype is "auto", "f32" or "bf16".
func WithDtype(dtype string) Option {
	return textOption(func(o *cOpenOptions) *cText { return &o.dtype }, dtype)
}

// WithCacheDir is the hub's cache.
func WithCacheDir(directory string) Option {
	return textOption(func(o *cOpenOptions) *cText { return &o.cacheDir }, directory)
}

// WithHubEndpoint is the hub's address.
func WithHubEndpoint(address string) Option {
	return textOption(func(o *cOpenOptions) *cText { return &o.hubEndpoint }, address)
}

// WithHubToken is the hub's access token.
func WithHubToken(token string) Option {
	return textOption(func(o *cOpenOptions) *cText { return &o.hubToken }, token)
}

// WithDataDir is where models/demo lies.
func WithDataDir(directory string) Option {
	return textOption(func(o *cOpenOptions) *cText { return &o.dataDir }, directory)
}

// WithPackedCache keeps packed weights in a file in that directory ("auto": in packed/ beside the
// backbone's weights), which the next open maps and processes share.
func WithPackedCache(directory string) Option {
	return textOption(func(o *cOpenOptions) *cText { return &o.packedCache }, directory)
}

// WithThreads is the number of threads of the guard's own pool.
func WithThreads(threads int) Option {
	return func(o *opening) {
		if threads < 0 || threads > 1<<20 {
			o.err = invalid("threads is %d, expected 0 (the default) or a number of threads", threads)
			return
		}
		o.options.threads = uint32(threads)
	}
}

// WithMaxLength is the longest text in tokens.
func WithMaxLength(tokens int64) Option {
	return countOption("max_length", func(o *cOpenOptions) *uint64 { return &o.maxLength }, tokens)
}

// WithMaxTextBytes is the longest text in bytes.
func WithMaxTextBytes(bytes int64) Option {
	return countOption("max_text_bytes", func(o *cOpenOptions) *uint64 { return &o.maxTextBytes }, bytes)
}

// WithMaxBatch is the most texts of one batch.
func WithMaxBatch(texts int64) Option {
	return countOption("max_batch", func(o *cOpenOptions) *uint64 { return &o.maxBatch }, texts)
}

// WithMaxQueue is the most texts that wait, over all callers.
func WithMaxQueue(texts int64) Option {
	return countOption("max_queue", func(o *cOpenOptions) *uint64 { return &o.maxQueue }, texts)
}

// WithMaxStreams is the most streams that are open at once.
func WithMaxStreams(streams int64) Option {
	return countOption("max_streams", func(o *cOpenOptions) *uint64 { return &o.maxStreams }, streams)
}

// WithKVBytes is the memory for what streams and the prefix cache keep.
func WithKVBytes(bytes int64) Option {
	return countOption("kv_bytes", func(o *cOpenOptions) *uint64 { return &o.kvBytes }, bytes)
}

// WithPrefixCacheBytes is how much of it the prefix cache may take.
func WithPrefixCacheBytes(bytes int64) Option {
	return countOption("prefix_cache_bytes", func(o *cOpenOptions) *uint64 { return &o.prefixCacheBytes }, bytes)
}

// WithoutPrefixCache keeps no beginnings of texts.
func WithoutPrefixCache() Option {
	return flagOption(func(o *cOpenOptions) *uint32 { return &o.noPrefixCache })
}

// Offline never touches the network.
func Offline() Option {
	return flagOption(func(o *cOpenOptions) *uint32 { return &o.offline })
}

// WithReadWeights reads the weights into memory instead of mapping their file.
func WithReadWeights() Option {
	return flagOption(func(o *cOpenOptions) *uint32 { return &o.readWeights })
}

// WithProgress tells how downloads go, in bytes; total is 0 while it is not known. It is called on a
// thread of the library's and must return soon.
func WithProgress(progress func(file string, done, total uint64)) Option {
	return func(o *opening) { o.progress = progress }
}

// WithConcurrency is how many calls of this guard and its streams are inside the library at once, 64
// if nothing is said. Each holds one thread of the operating system; the others wait as goroutines,
// until their context ends.
func WithConcurrency(calls int) Option {
	return func(o *opening) {
		if calls < 1 {
			o.err = invalid("the concurrency is %d, expected 1 or more", calls)
			return
		}
		o.concurrency = calls
	}
}

// ScoreOption is how a text is scored: Threshold, Windows or Wait.
type ScoreOption interface{ score(*cScoreOptions) }

// StreamOption is how a stream is opened: WithPrompt, Threshold, Windows or Hysteresis.
type StreamOption interface{ stream(*streamOpening) }

// PushOption is how a stream is pushed: Wait or TokenScores.
type PushOption interface{ push(*pushFrame) }

// Threshold is compared with the score, in place of the guard's own.
type Threshold float64

func (t Threshold) score(o *cScoreOptions) { o.hasThreshold, o.threshold = 1, float64(t) }
func (t Threshold) stream(o *streamOpening) {
	o.options.hasThreshold, o.options.threshold = 1, float64(t)
}

// Windows reads a text that is longer than the guard's max_length in overlapping windows, whose
// highest score is the text's. Zeros are the defaults.
type Windows struct {
	// Tokens of a window, special ones included: the guard's max_length.
	Tokens uint64
	// Stride is the tokens of text from one window's start to the next one's: half a window.
	Stride uint64
}

func (w Windows) score(o *cScoreOptions) {
	o.windows, o.windowTokens, o.windowStride = 1, w.Tokens, w.Stride
}
func (w Windows) stream(o *streamOpening) {
	o.options.windows, o.options.windowTokens, o.options.windowStride = 1, w.Tokens, w.Stride
}

// Wait for a place when the library's queue is full; without it the call fails with ErrBusy at once.
type Wait bool

func (w Wait) score(o *cScoreOptions) { o.wait = flag(bool(w)) }
func (w Wait) push(f *pushFrame)      { f.options.wait = flag(bool(w)) }

// Hysteresis is how many tokens in a row must be at or above the threshold to count as a crossing.
type Hysteresis uint64

func (h Hysteresis) stream(o *streamOpening) { o.options.hysteresis = uint64(h) }

// TokenScores asks for the running score after each token that a push runs, at most this many.
type TokenScores int

func (n TokenScores) push(f *pushFrame) { f.tokenScores = make([]float64, max(0, int(n))) }

type promptOption part

// WithPrompt is what the growing response answers.
func WithPrompt[T ~string | ~[]byte](prompt T) StreamOption { return promptOption(partOf(prompt)) }

func (p promptOption) stream(o *streamOpening) { o.prompt = part(p) }

func flag(on bool) uint32 {
	if on {
		return 1
	}
	return 0
}

// streamOpening is what the options of NewStream make.
type streamOpening struct {
	options cStreamOptions
	prompt  part
}

// open calls the library, which copies what the options say.
func (o *opening) open() (uintptr, error) {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	o.options.structSize = uint32(unsafe.Sizeof(o.options))
	for field, text := range o.texts {
		if text != "" {
			*field = partOf(text).c(&pinner)
		}
	}
	if o.progress != nil {
		id := register(o.progress)
		defer callbacks.Delete(id)
		o.options.progress, o.options.progressUserData = nativeProgress(), id
	}
	// Alone in its memory: cgo looks at all of an object for pointers that are not pinned.
	options := new(cOpenOptions)
	*options = o.options
	guard, failed := new(uintptr), newError()
	status := nativeOpen(options, guard, &failed)
	return *guard, check(status, &failed)
}
