package siren

import (
	"bytes"
	"runtime"
	"unsafe"
)

// Info is what a guard is made of; InfoJSON tells the rest.
type Info struct {
	Threads          int
	MaxLength        int
	DefaultThreshold float64
	LayersRun        int
	Layers           int
	HiddenSize       int
	Neurons          int
	WeightBytes      uint64
	MaxTextBytes     uint64
	MaxBatch         uint64
	KVTokenBytes     uint64
	Device           string
	Dtype            string
}

// Info tells what the guard is made of.
func (g *Guard) Info() (*Info, error) {
	defer runtime.KeepAlive(g)
	info, failed := cGuardInfo{structSize: uint32(unsafe.Sizeof(cGuardInfo{}))}, newError()
	if err := check(nativeInfo(g.handle, &info, &failed), &failed); err != nil {
		return nil, err
	}
	return &Info{
		Threads:          int(info.threads),
		MaxLength:        int(info.maxLength),
		DefaultThreshold: info.defaultThreshold,
		LayersRun:        int(info.layersRun),
		Layers:           int(info.layers),
		HiddenSize:       int(info.hiddenSize),
		Neurons:          int(info.neurons),
		WeightBytes:      info.weightBytes,
		MaxTextBytes:     info.maxTextBytes,
		MaxBatch:         info.maxBatch,
		KVTokenBytes:     info.kvTokenBytes,
		Device:           name(&info.device),
		Dtype:            name(&info.dtype),
	}, nil
}

func name(field *[16]byte) string {
	text, _, _ := bytes.Cut(field[:], []byte{0})
	return string(text)
}

// Stats are the counters of a guard since it was opened, and what it holds now. siren.h says what
// each counts.
type Stats struct {
	Requests, Texts, Pushes, Harmful     uint64
	Tokens, TokensReused, Truncated      uint64
	QueueDepth, Passes, PassSequences    uint64
	PassSeconds                          float64
	PassTokensLimit                      uint64
	LatencyCounts                        [16]uint64
	LatencySum                           float64
	KVBytes, Streams, StreamsParked      uint64
	CacheEntries, CacheHits, CacheMisses uint64
	// Errors counts failures by their status.
	Errors map[Status]uint64
}

// Stats tells what the guard has done so far.
func (g *Guard) Stats() (*Stats, error) {
	defer runtime.KeepAlive(g)
	s, failed := cGuardStats{structSize: uint32(unsafe.Sizeof(cGuardStats{}))}, newError()
	if err := check(nativeStats(g.handle, &s, &failed), &failed); err != nil {
		return nil, err
	}
	stats := &Stats{
		Requests: s.requests, Texts: s.texts, Pushes: s.pushes, Harmful: s.harmful,
		Tokens: s.tokens, TokensReused: s.tokensReused, Truncated: s.truncated,
		QueueDepth: s.queueDepth, Passes: s.passes, PassSequences: s.passSequences,
		PassSeconds: s.passSeconds, PassTokensLimit: s.passTokensLimit,
		LatencyCounts: s.latencyCounts, LatencySum: s.latencySum,
		KVBytes: s.kvBytes, Streams: s.streams, StreamsParked: s.streamsParked,
		CacheEntries: s.cacheEntries, CacheHits: s.cacheHits, CacheMisses: s.cacheMisses,
		Errors: map[Status]uint64{},
	}
	for status, count := range s.errors {
		if count > 0 {
			stats.Errors[Status(status)] = count
		}
	}
	return stats, nil
}

// StatsPrometheus is what the guard has done so far, in the text format of Prometheus.
func (g *Guard) StatsPrometheus() ([]byte, error) {
	defer runtime.KeepAlive(g)
	return written(func(buffer []byte, length *uintptr, failed *cError) int32 {
		return nativeStatsPrometheus(g.handle, buffer, length, failed)
	})
}

// InfoJSON is everything about the guard, as one JSON object.
func (g *Guard) InfoJSON() ([]byte, error) {
	defer runtime.KeepAlive(g)
	return written(func(buffer []byte, length *uintptr, failed *cError) int32 {
		return nativeInfoJSON(g.handle, buffer, length, failed)
	})
}

// AuditJSON is the record of a result that the guard gave input: hashes, and no text.
func (g *Guard) AuditJSON(input Input, result *Result) ([]byte, error) {
	if result == nil {
		return nil, invalid("there is no result to record")
	}
	defer runtime.KeepAlive(g)
	var pinner runtime.Pinner
	defer pinner.Unpin()
	in, r := new(cInput), new(cResult)
	*in = input.c(&pinner)
	*r = cResult{
		structSize: uint32(unsafe.Sizeof(cResult{})),
		score:      result.Score,
		threshold:  result.Threshold,
		isHarmful:  flag(result.Harmful),
		truncated:  flag(result.Truncated),
		tokens:     uint64(result.Tokens),
	}
	if w := result.Window; w != nil {
		r.windows, r.windowIndex = uint64(w.Count), uint64(w.Index)
		r.windowStart, r.windowEnd = uint64(w.Start), uint64(w.End)
	}
	return written(func(buffer []byte, length *uintptr, failed *cError) int32 {
		return nativeAuditJSON(g.handle, in, r, buffer, length, failed)
	})
}

// written calls write with a buffer that is large enough. What it writes may grow between two calls.
func written(write func(buffer []byte, length *uintptr, failed *cError) int32) ([]byte, error) {
	buffer, length, failed := make([]byte, 4096), new(uintptr), new(cError)
	*failed = newError()
	for {
		status := write(buffer, length, failed)
		if Status(status) != ErrInvalidArgument || int(*length) < len(buffer) {
			if err := check(status, failed); err != nil {
				return nil, err
			}
			return buffer[:*length], nil
		}
		buffer = make([]byte, *length+*length/4+1)
	}
}
