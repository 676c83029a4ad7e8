//! The layout of every struct of the ABI, for the file that all bindings' tests assert.

use std::mem::{offset_of, size_of};

use serde_json::{Map, Value, json};

use super::{
    siren_error, siren_guard_info, siren_input, siren_open_options, siren_result,
    siren_score_options, siren_text,
};

macro_rules! layout {
    ($type:ident { $($field:ident),* $(,)? }) => {{
        let mut fields = Map::new();
        $(fields.insert(stringify!($field).into(), json!(offset_of!($type, $field)));)*
        (stringify!($type), json!({ "size": size_of::<$type>(), "offsets": fields }))
    }};
}

/// `{struct: {"size": bytes, "offsets": {field: bytes}}}`, as committed in
/// `include/siren-layout.json`.
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
        }),
        layout!(siren_input { struct_size, reserved, text, prompt, response }),
        layout!(siren_score_options { struct_size, has_threshold, threshold }),
        layout!(siren_result {
            struct_size,
            status,
            score,
            threshold,
            is_harmful,
            truncated,
            tokens,
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
            device,
            dtype,
        }),
    ];
    Value::Object(structs.map(|(name, layout)| (name.to_owned(), layout)).into_iter().collect())
}
