package siren

import "unsafe"

// The structs of siren.h, as C lays them out on 64-bit machines; abi_test.go holds them against
// include/siren-abi.json. Handles and callbacks are numbers here: Go must not follow them.

const (
	abiMajor = 0
	abiMinor = 3
)

type cText struct {
	data   unsafe.Pointer
	length uintptr
}

type cError struct {
	structSize    uint32
	status        int32
	messageLength uint64
	message       [1008]byte
}

type cOpenOptions struct {
	structSize       uint32
	threads          uint32
	model            cText
	backbone         cText
	device           cText
	dtype            cText
	cacheDir         cText
	hubEndpoint      cText
	hubToken         cText
	dataDir          cText
	maxLength        uint64
	maxTextBytes     uint64
	maxBatch         uint64
	maxQueue         uint64
	offline          uint32
	readWeights      uint32
	progress         uintptr
	progressUserData uintptr
	maxStreams       uint64
	kvBytes          uint64
	prefixCacheBytes uint64
	noPrefixCache    uint32
	reserved         uint32
	packedCache      cText
}

type cInput struct {
	structSize uint32
	reserved   uint32
	text       cText
	prompt     cText
	response   cText
}

type cScoreOptions struct {
	structSize   uint32
	hasThreshold uint32
	threshold    float64
	cancel       uintptr
	timeoutMs    uint64
	wait         uint32
	windows      uint32
	windowTokens uint64
	windowStride uint64
}

type cResult struct {
	structSize  uint32
	status      int32
	score       float64
	threshold   float64
	isHarmful   uint32
	truncated   uint32
	tokens      uint64
	windows     uint64
	windowIndex uint64
	windowStart uint64
	windowEnd   uint64
}

type cStreamOptions struct {
	structSize   uint32
	hasThreshold uint32
	threshold    float64
	prompt       cText
	hysteresis   uint64
	windows      uint32
	reserved     uint32
	windowTokens uint64
	windowStride uint64
}

type cPushOptions struct {
	structSize          uint32
	wait                uint32
	cancel              uintptr
	timeoutMs           uint64
	tokenScores         unsafe.Pointer
	tokenScoresCapacity uintptr
}

type cPushResult struct {
	structSize       uint32
	status           int32
	score            float64
	threshold        float64
	isHarmful        uint32
	truncated        uint32
	tokens           uint64
	crossed          uint32
	reserved         uint32
	crossingToken    uint64
	crossingByte     uint64
	clearedBytes     uint64
	windows          uint64
	windowIndex      uint64
	windowStart      uint64
	windowEnd        uint64
	firstScored      uint64
	tokenScoresCount uint64
}

type cGuardInfo struct {
	structSize       uint32
	threads          uint32
	maxLength        uint64
	defaultThreshold float64
	layersRun        uint32
	layers           uint32
	hiddenSize       uint64
	neurons          uint64
	weightBytes      uint64
	maxTextBytes     uint64
	maxBatch         uint64
	kvTokenBytes     uint64
	device           [16]byte
	dtype            [16]byte
}

type cGuardStats struct {
	structSize      uint32
	reserved        uint32
	requests        uint64
	texts           uint64
	pushes          uint64
	harmful         uint64
	tokens          uint64
	tokensReused    uint64
	truncated       uint64
	queueDepth      uint64
	passes          uint64
	passSequences   uint64
	passSeconds     float64
	passTokensLimit uint64
	latencyCounts   [16]uint64
	latencySum      float64
	kvBytes         uint64
	streams         uint64
	streamsParked   uint64
	cacheEntries    uint64
	cacheHits       uint64
	cacheMisses     uint64
	errors          [32]uint64
}
