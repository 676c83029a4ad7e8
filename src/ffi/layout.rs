//! The layout of every struct of the ABI, for the file that all bindings' tests assert.

use std::mem::{offset_of, size_of};

use serde_json::{Map, Value, json};

use super::{
    siren_error, siren_guard_info, siren_guard_stats, siren_input, siren_open_options,
    siren_push_options, siren_push_result, siren_result, siren_score_options, siren_stream_options,
    siren_text,
};

macro_rules! layout {
    ($type:ident { $($field:ident),* $(,)? }) => {{
        let mut fields = Map::new();
        $(fields.insert(stringify!($field).into(), json!(offset_of!($type, $field)));)*
        (stringify!($type), json!({ "size": size_of::<$type>(), "offsets": fields }))
    }};
}

/// `{struct: {"size": bytes, "offsets": {field: bytes}}}`, as committed under `structs` in
/// `include/siren-abi.json`.
pub fn layouts() -> Value {
    let structs = [
        layout!(siren_text { data, length }),
        layout!(siren_error { struct_size, status, message_length, message }),
        layout!(siren_open_options {
            struct_size,
            threads,
            model,
            backbone,
            device,
            dtype,
            cache_dir,
            hub_endpoint,
            hub_token,
            data_dir,
            max_length,
            max_text_bytes,
            max_batch,
            max_queue,
            offline,
            read_weights,
            progress,
            progress_user_data,
            max_streams,
            kv_bytes,
            prefix_cache_bytes,
            no_prefix_cache,
            reserved,
            packed_cache,
        }),
        layout!(siren_input { struct_size, reserved, text, prompt, response }),
        layout!(siren_score_options {
            struct_size,
            has_threshold,
            threshold,
            cancel,
            timeout_ms,
            wait,
            windows,
            window_tokens,
            window_stride,
        }),
        layout!(siren_result {
            struct_size,
            status,
            score,
            threshold,
            is_harmful,
            truncated,
            tokens,
            windows,
            window_index,
            window_start,
            window_end,
        }),
        layout!(siren_stream_options {
            struct_size,
            has_threshold,
            threshold,
            prompt,
            hysteresis,
            windows,
            reserved,
            window_tokens,
            window_stride,
        }),
        layout!(siren_push_options {
            struct_size,
            wait,
            cancel,
            timeout_ms,
            token_scores,
            token_scores_capacity,
        }),
        layout!(siren_push_result {
            struct_size,
            status,
            score,
            threshold,
            is_harmful,
            truncated,
            tokens,
            crossed,
            reserved,
            crossing_token,
            crossing_byte,
            cleared_bytes,
            windows,
            window_index,
            window_start,
            window_end,
            first_scored,
            token_scores_count,
        }),
        layout!(siren_guard_info {
            struct_size,
            threads,
            max_length,
            default_threshold,
            layers_run,
            layers,
            hidden_size,
            neurons,
            weight_bytes,
            max_text_bytes,
            max_batch,
            kv_token_bytes,
            device,
            dtype,
        }),
        layout!(siren_guard_stats {
            struct_size,
            reserved,
            requests,
            texts,
            pushes,
            harmful,
            tokens,
            tokens_reused,
            truncated,
            queue_depth,
            passes,
            pass_sequences,
            pass_seconds,
            pass_tokens_limit,
            latency_counts,
            latency_sum,
            kv_bytes,
            streams,
            streams_parked,
            cache_entries,
            cache_hits,
            cache_misses,
            errors,
        }),
    ];
    Value::Object(structs.map(|(name, layout)| (name.to_owned(), layout)).into_iter().collect())
}
