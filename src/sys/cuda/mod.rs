//! Opening a GPU: what is missing is looked for before candle is asked, which would not say it.
#![allow(unsafe_code)] // Calls of the CUDA driver.

use std::ffi::{CStr, c_char, c_int, c_uint};

use candle_core::Device;

use crate::error::{Error, Result, Status};

/// What the driver must serve: the version of the toolkit that compiled the kernels, as
/// 1000 major + 10 minor.
const VERSION: c_int = parse(env!("SIREN_CUDA_VERSION"));
/// bf16 begins here.
const CAPABILITY: (c_int, c_int) = (8, 0);

/// A library of `lazy.c`, by its number there, and its name.
type Library = (c_int, &'static str);

/// What multiplies.
const PRODUCTS: [Library; 2] = [(1, "cuBLAS"), (2, "cuBLASLt")];
/// What candle opens with every device; own kernels have no use for it.
const RANDOM: Library = (3, "cuRAND");

type Code = c_uint;
const NO_DEVICE: Code = 100;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;

// All but the first two are the stand-ins of `lazy.c`, which may be called without a driver.
unsafe extern "C" {
    fn siren_cuda_load(library: c_int) -> *const c_char;
    fn siren_cuda_name(library: c_int, which: c_int) -> *const c_char;
    fn cuDriverGetVersion(version: *mut c_int) -> Code;
    fn cuInit(flags: c_uint) -> Code;
    fn cuDeviceGetCount(count: *mut c_int) -> Code;
    fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Code;
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) -> Code;
    fn cuGetErrorName(code: Code, name: *mut *const c_char) -> Code;
}

/// The GPU of this index, with a stream of its own.
///
/// # Errors
/// `Unsupported`, with what is missing: the driver, its version, the device, its compute
/// capability or a library; `OutOfMemory`.
pub(crate) fn device(ordinal: usize) -> Result<Device> {
    require(ordinal)?;
    is_there(RANDOM).map_err(|words| refused(ordinal, &words))?;
    let device = Device::new_cuda_with_stream(ordinal).map_err(|e| match Error::from(e) {
        e if e.status() == Status::OutOfMemory => e,
        e => refused(ordinal, e.message()),
    })?;
    // SAFETY: everything of this device runs on its one stream, in the order in which it is asked.
    unsafe { device.as_cuda_device()?.disable_event_tracking() };
    Ok(device)
}

/// Initialises the driver, and looks for all that own kernels need on GPU `ordinal`.
///
/// # Errors
/// `Unsupported`, with what is missing.
pub(crate) fn require(ordinal: usize) -> Result<()> {
    check(ordinal).map_err(|words| refused(ordinal, &words))
}

/// That GPU `ordinal` cannot be opened, and why.
pub(crate) fn refused(ordinal: usize, words: &str) -> Error {
    Error::new(Status::Unsupported, format!("CUDA device {ordinal}: {words}"))
}

/// Whether GPU `ordinal` can serve; else in words what was found, and what is needed.
fn check(ordinal: usize) -> Result<(), String> {
    load(0).map_err(|why| format!("no driver: {why}"))?;
    let version = asked("cuDriverGetVersion", |to| {
        // SAFETY: `to` is a number to be written.
        unsafe { cuDriverGetVersion(to) }
    })?;
    if version < VERSION {
        let [found, needed] = [version, VERSION].map(|v| format!("{}.{}", v / 1000, v % 1000 / 10));
        return Err(format!("the driver serves CUDA {found}, expected {needed} or later"));
    }
    // SAFETY: it takes no pointer, and may be called again.
    match unsafe { cuInit(0) } {
        0 => {}
        NO_DEVICE => return Err("the driver finds no device".into()),
        code => return Err(failed("cuInit", code)),
    }
    let count = asked("cuDeviceGetCount", |to| {
        // SAFETY: `to` is a number to be written.
        unsafe { cuDeviceGetCount(to) }
    })?;
    let index = c_int::try_from(ordinal).ok().filter(|&index| index < count).ok_or_else(|| {
        let noun = if count == 1 { "device" } else { "devices" };
        format!("the driver finds {count} {noun}, expected an index below that")
    })?;
    let device = asked("cuDeviceGet", |to| {
        // SAFETY: `to` is a number to be written.
        unsafe { cuDeviceGet(to, index) }
    })?;
    let attribute = |which| {
        asked("cuDeviceGetAttribute", |to| {
            // SAFETY: `to` is a number to be written, and `device` is the driver's own.
            unsafe { cuDeviceGetAttribute(to, which, device) }
        })
    };
    let capability = (attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?);
    if capability < CAPABILITY {
        let [found, needed] =
            [capability, CAPABILITY].map(|(major, minor)| format!("{major}.{minor}"));
        return Err(format!("its compute capability is {found}, expected {needed} or later"));
    }
    PRODUCTS.into_iter().try_for_each(is_there)
}

fn is_there((library, name): Library) -> Result<(), String> {
    load(library).map_err(|why| format!("{name} is missing: {why}"))
}

/// Loads one of the libraries; else says under which names it was looked for.
fn load(library: c_int) -> Result<(), String> {
    // SAFETY: `library` is one of `lazy.c`'s numbers; the words are copied at once.
    let why = unsafe { words(siren_cuda_load(library)) };
    let Some(why) = why else { return Ok(()) };
    let names = (0..).map_while(|which| {
        // SAFETY: as above, and any `which` may be asked for.
        unsafe { words(siren_cuda_name(library, which)) }
    });
    let names: Vec<_> = names.collect();
    Err(format!("tried {}: {why}", names.join(", ")))
}

/// What a driver's function writes.
fn asked(name: &str, ask: impl FnOnce(*mut c_int) -> Code) -> Result<c_int, String> {
    let mut value = 0;
    match ask(&mut value) {
        0 => Ok(value),
        code => Err(failed(name, code)),
    }
}

/// What a function of the driver's has answered, in words.
pub(crate) fn failed(function: &str, code: Code) -> String {
    let mut name = std::ptr::null();
    // SAFETY: `name` is a pointer to be written; it stays null where the code is not known.
    let known = unsafe {
        cuGetErrorName(code, &mut name);
        words(name)
    };
    let name = known.map_or_else(String::new, |name| format!("{name}, "));
    format!("the driver's {function} failed ({name}code {code})")
}

/// # Safety
/// `text` is null or a C string.
unsafe fn words(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller says so.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

const fn parse(digits: &str) -> c_int {
    let (digits, mut value, mut i) = (digits.as_bytes(), 0, 0);
    while i < digits.len() {
        value = value * 10 + (digits[i] - b'0') as c_int;
        i += 1;
    }
    value
}
