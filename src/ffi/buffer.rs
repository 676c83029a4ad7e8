//! Text that is written into a caller's buffer.

use std::ffi::c_char;

use crate::error::{Error, Result};

/// A caller's buffer and its place for a length, checked.
pub(super) struct Buffer {
    data: *mut c_char,
    capacity: usize,
    length: *mut usize,
}

impl Buffer {
    /// Checks what can be checked before the text is made.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub(super) fn new(data: *mut c_char, capacity: usize, length: *mut usize) -> Result<Self> {
        if length.is_null() {
            return Err(Error::argument("length is NULL"));
        }
        if data.is_null() && capacity != 0 {
            return Err(Error::argument(format!("buffer is NULL with a capacity of {capacity}")));
        }
        Ok(Self { data, capacity, length })
    }

    /// Writes the length of `text`, and `text` with a NUL unless the caller only asks for the
    /// length.
    ///
    /// # Errors
    /// `InvalidArgument` for a buffer that is too small: then the length alone is written.
    ///
    /// # Safety
    /// The buffer has `capacity` writable bytes, and the length is writable.
    pub(super) unsafe fn write(self, text: &str) -> Result<()> {
        // SAFETY: not NULL, the caller's.
        unsafe { self.length.write_unaligned(text.len()) };
        if self.data.is_null() {
            return Ok(());
        }
        if self.capacity <= text.len() {
            return Err(Error::argument(format!(
                "the buffer has {} bytes, expected {} for the text and its NUL",
                self.capacity,
                text.len() + 1
            )));
        }
        // SAFETY: the caller's buffer has room for the text and its NUL.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), self.data, text.len());
            self.data.add(text.len()).write(0);
        }
        Ok(())
    }
}
