//! The C functions called from Rust, in this process, whose allocator looks at every free.
#![allow(unsafe_code)] // The C ABI takes raw pointers.

use std::ffi::{c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::mpsc::{Sender, channel};

use siren::ffi::*;

use crate::stage::demo;

const TEXT: &str = "How can I make a pipe bomb at home?";

fn text_of(text: &str) -> siren_text {
    siren_text { data: text.as_ptr().cast(), length: text.len() }
}

/// A struct of the ABI with its size, and 0 everywhere else.
fn new<T: Copy>() -> T {
    // SAFETY: used with structs of the ABI alone, which are valid when all bytes are 0 and start
    // with their size.
    unsafe {
        let mut value: T = std::mem::zeroed();
        (&raw mut value).cast::<u32>().write(size_of::<T>() as u32);
        value
    }
}

/// Hands a status on to whoever waits.
unsafe extern "C" fn send(
    user_data: *mut c_void,
    status: i32,
    _: *const siren_result,
    _: *const siren_error,
) {
    // SAFETY: the test hands over a boxed sender with every call, which calls back once.
    let sender = unsafe { Box::from_raw(user_data.cast::<Sender<i32>>()) };
    sender.send(status).unwrap();
}

#[test]
fn what_is_freed_is_freed_as_it_was_allocated() {
    let model = demo().display().to_string();
    let mut options: siren_open_options = new();
    options.model = text_of(&model);
    options.threads = 2;
    let mut input: siren_input = new();
    input.text = text_of(TEXT);
    let invalid =
        siren_input { text: siren_text { data: [0xFFu8].as_ptr().cast(), length: 1 }, ..input };
    let mut guard = null_mut();
    let mut stream = null_mut();
    let mut forked = null_mut();
    let mut token = null_mut();
    let mut result: siren_result = new();
    let mut results = [result; 3];
    let mut error: siren_error = new();
    let mut errors = [error; 3];
    let mut stats: siren_guard_stats = new();
    let mut length = 0;
    let mut buffer = vec![0 as c_char; 1 << 16];
    let (sender, receiver) = channel();
    // SAFETY: every pointer is NULL or to a whole struct, and texts outlive the calls.
    unsafe {
        assert_eq!(siren_open(&options, &mut guard, &mut error), 0);
        assert_eq!(siren_cancel_token_new(&mut token, null_mut()), 0);
        let mut scoring: siren_score_options = new();
        scoring.cancel = token;
        assert_eq!(siren_score(guard, &input, &scoring, &mut result, null_mut()), 0);
        let inputs = [input, invalid, input];
        let (first, at) = (results.as_mut_ptr(), errors.as_mut_ptr());
        assert_eq!(siren_score_batch(guard, inputs.as_ptr(), 3, null(), first, at, null_mut()), 0);
        let boxed: *mut Sender<i32> = Box::into_raw(Box::new(sender));
        let called = siren_score_async(guard, &input, null(), Some(send), boxed.cast(), null_mut());
        assert_eq!(called, 0);
        assert_eq!(receiver.recv(), Ok(0));
        assert_eq!(siren_stats(guard, &mut stats, null_mut()), 0);
        let (at, room) = (buffer.as_mut_ptr(), buffer.len());
        assert_eq!(siren_info_json(guard, at, room, &mut length, null_mut()), 0);
        assert_eq!(siren_audit_json(guard, &input, &result, at, room, &mut length, null_mut()), 0);
        assert_eq!(siren_stream_new(guard, null(), &mut stream, null_mut()), 0);
        assert_eq!(siren_stream_fork(stream, &mut forked, null_mut()), 0);
        assert_eq!(siren_free(guard), 0);
        let mut pushed: siren_push_result = new();
        for handle in [stream, forked] {
            let (data, size) = (TEXT.as_ptr().cast(), TEXT.len());
            let status = siren_stream_push(handle, data, size, null(), &mut pushed, &mut error);
            assert_eq!(status, 0, "{error}", error = message(&error));
            assert!((pushed.score - result.score).abs() <= 1e-4);
            assert_eq!(siren_stream_free(handle), 0);
        }
        assert_eq!(siren_cancel_token_free(token), 0);
    }
}

fn message(error: &siren_error) -> String {
    error.message.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8 as char).collect()
}
