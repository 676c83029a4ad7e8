//! Structs that travel by pointer: `uint32_t struct_size` first, grown only at the end.

use std::mem::{MaybeUninit, size_of};

use crate::error::{Error, Result};

/// No struct of this ABI will ever be larger: a larger `struct_size` is a mistake, and is refused
/// before anything is read at that distance.
const MAX_STRUCT_SIZE: usize = 1 << 16;

/// A struct of the ABI.
///
/// # Safety
/// The type is `repr(C)`, starts with `struct_size: u32`, and is valid when all its bytes are 0.
pub(super) unsafe trait AbiStruct: Copy {
    const NAME: &'static str;
    /// Size of the first version, the least that is accepted.
    const FIRST_SIZE: usize;
}

/// The `struct_size` at `pointer`, checked.
///
/// # Safety
/// `pointer` is NULL or points to at least four readable bytes.
unsafe fn size_at<T: AbiStruct>(pointer: *const T) -> Result<usize> {
    if pointer.is_null() {
        return Err(Error::argument(format!("{} is NULL", T::NAME)));
    }
    // SAFETY: the struct starts with its size; it may be unaligned in packed foreign memory.
    let size = unsafe { pointer.cast::<u32>().read_unaligned() } as usize;
    if size < T::FIRST_SIZE || size > MAX_STRUCT_SIZE {
        return Err(Error::argument(format!(
            "{}.struct_size is {size}, expected sizeof({}), which is {} here",
            T::NAME,
            T::NAME,
            size_of::<T>()
        )));
    }
    Ok(size)
}

/// Reads an input struct. What a newer caller's struct holds beyond this library's must be zero:
/// an option that is not known here cannot be honoured.
///
/// # Safety
/// `pointer` is NULL or points to as many readable bytes as its `struct_size` says.
pub(super) unsafe fn read<T: AbiStruct>(pointer: *const T) -> Result<T> {
    // SAFETY: the caller's promise.
    let size = unsafe { size_at(pointer)? };
    let known = size.min(size_of::<T>());
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes are readable there and writable here.
    unsafe {
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), value.as_mut_ptr().cast(), known);
    }
    // SAFETY: `size` bytes are readable at `pointer`, and `known` is at most `size`.
    let tail = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>().add(known), size - known) };
    if tail.iter().any(|&byte| byte != 0) {
        return Err(Error::argument(format!(
            "{} sets options that this version of the library does not have",
            T::NAME
        )));
    }
    // SAFETY: the type is valid for any bytes that C code may put there (the trait's promise).
    Ok(unsafe { value.assume_init() })
}

/// Checks an output struct before any work is done for it.
///
/// # Safety
/// `pointer` is NULL or points to at least four readable bytes.
pub(super) unsafe fn check_output<T: AbiStruct>(pointer: *const T) -> Result<usize> {
    // SAFETY: the caller's promise.
    unsafe { size_at(pointer) }
}

/// Writes the part of `value` that the caller's struct has room for, and keeps its `struct_size`.
///
/// # Safety
/// [`check_output`] accepted `pointer`, and it has as many writable bytes as `struct_size` says.
pub(super) unsafe fn write<T: AbiStruct>(pointer: *mut T, value: &T) {
    // SAFETY: the size was checked, and that much is writable; the first field is left alone.
    unsafe {
        let size = pointer.cast::<u32>().read_unaligned() as usize;
        let known = size.min(size_of::<T>());
        let skip = size_of::<u32>();
        std::ptr::copy_nonoverlapping(
            std::ptr::from_ref(value).cast::<u8>().add(skip),
            pointer.cast::<u8>().add(skip),
            known - skip,
        );
    }
}

/// Fills a caller's struct of `struct_size` bytes with zeros and its own size.
///
/// # Safety
/// `pointer` is NULL or points to `struct_size` writable bytes.
pub(super) unsafe fn init<T: AbiStruct>(pointer: *mut T, struct_size: u32) -> Result<()> {
    let size = struct_size as usize;
    if pointer.is_null() {
        return Err(Error::argument(format!("{} is NULL", T::NAME)));
    }
    if size < T::FIRST_SIZE || size > MAX_STRUCT_SIZE {
        return Err(Error::argument(format!(
            "struct_size is {size}, expected sizeof({})",
            T::NAME
        )));
    }
    // SAFETY: `size` bytes are writable there.
    unsafe {
        pointer.cast::<u8>().write_bytes(0, size);
        pointer.cast::<u32>().write_unaligned(struct_size);
    }
    Ok(())
}

/// A flag: 0 or 1.
pub(super) fn flag(name: &str, value: u32) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::argument(format!("{name} is {value}, expected 0 or 1"))),
    }
}

/// A field that is kept free: 0.
pub(super) fn reserved(name: &str, value: u32) -> Result<()> {
    match value {
        0 => Ok(()),
        _ => Err(Error::argument(format!("{name}.reserved is not 0"))),
    }
}

/// Copies `text` into a fixed C string, cut at a character if it must be.
pub(super) fn copy_text(text: &str, target: &mut [std::ffi::c_char]) {
    let room = target.len() - 1;
    let text = &text[..text.floor_char_boundary(room)];
    for (target, byte) in target.iter_mut().zip(text.bytes().chain([0])) {
        *target = byte as std::ffi::c_char;
    }
}
