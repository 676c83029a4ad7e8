'use strict';
// The structs of siren.h, little-endian and 64-bit: sizes, and the offset of each field. A test holds them
// against include/siren-abi.json.

const layouts = {
  siren_text: {
    size: 16,
    at: {
      data: 0, length: 8,
    },
  },
  siren_error: {
    size: 1024,
    at: {
      struct_size: 0, status: 4, message_length: 8, message: 16,
    },
  },
  siren_open_options: {
    size: 240,
    at: {
      struct_size: 0, threads: 4, model: 8, backbone: 24, device: 40, dtype: 56, cache_dir: 72,
      hub_endpoint: 88, hub_token: 104, data_dir: 120, max_length: 136, max_text_bytes: 144, max_batch: 152,
      max_queue: 160, offline: 168, read_weights: 172, progress: 176, progress_user_data: 184,
      max_streams: 192, kv_bytes: 200, prefix_cache_bytes: 208, no_prefix_cache: 216, reserved: 220,
      packed_cache: 224,
    },
  },
  siren_input: {
    size: 56,
    at: {
      struct_size: 0, reserved: 4, text: 8, prompt: 24, response: 40,
    },
  },
  siren_score_options: {
    size: 56,
    at: {
      struct_size: 0, has_threshold: 4, threshold: 8, cancel: 16, timeout_ms: 24, wait: 32, windows: 36,
      window_tokens: 40, window_stride: 48,
    },
  },
  siren_result: {
    size: 72,
    at: {
      struct_size: 0, status: 4, score: 8, threshold: 16, is_harmful: 24, truncated: 28, tokens: 32,
      windows: 40, window_index: 48, window_start: 56, window_end: 64,
    },
  },
  siren_stream_options: {
    size: 64,
    at: {
      struct_size: 0, has_threshold: 4, threshold: 8, prompt: 16, hysteresis: 32, windows: 40, reserved: 44,
      window_tokens: 48, window_stride: 56,
    },
  },
  siren_push_options: {
    size: 40,
    at: {
      struct_size: 0, wait: 4, cancel: 8, timeout_ms: 16, token_scores: 24, token_scores_capacity: 32,
    },
  },
  siren_push_result: {
    size: 120,
    at: {
      struct_size: 0, status: 4, score: 8, threshold: 16, is_harmful: 24, truncated: 28, tokens: 32,
      crossed: 40, reserved: 44, crossing_token: 48, crossing_byte: 56, cleared_bytes: 64, windows: 72,
      window_index: 80, window_start: 88, window_end: 96, first_scored: 104, token_scores_count: 112,
    },
  },
  siren_guard_info: {
    size: 112,
    at: {
      struct_size: 0, threads: 4, max_length: 8, default_threshold: 16, layers_run: 24, layers: 28,
      hidden_size: 32, neurons: 40, weight_bytes: 48, max_text_bytes: 56, max_batch: 64, kv_token_bytes: 72,
      device: 80, dtype: 96,
    },
  },
  siren_guard_stats: {
    size: 544,
    at: {
      struct_size: 0, reserved: 4, requests: 8, texts: 16, pushes: 24, harmful: 32, tokens: 40,
      tokens_reused: 48, truncated: 56, queue_depth: 64, passes: 72, pass_sequences: 80, pass_seconds: 88,
      pass_tokens_limit: 96, latency_counts: 104, latency_sum: 232, kv_bytes: 240, streams: 248,
      streams_parked: 256, cache_entries: 264, cache_hits: 272, cache_misses: 280, errors: 288,
    },
  },
};

const HIGH = 2 ** 32;

/** A whole number of 64 bits; exact up to 2^53, which no count and no address passes. */
const readU64 = (view, at) => view.getUint32(at, true) + view.getUint32(at + 4, true) * HIGH;

const writeU64 = (view, at, value) => {
  view.setUint32(at, value % HIGH, true);
  view.setUint32(at + 4, value / HIGH, true);
};

module.exports = { layouts, readU64, writeU64 };
