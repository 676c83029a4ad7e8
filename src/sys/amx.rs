//! The AMX tile unit, which Linux lets a process use only once it has asked.
#![allow(unsafe_code)] // One system call.

use once_cell::sync::Lazy;

/// Whether the CPU multiplies tiles of bf16 and this process may use them. Asks the system once,
/// which gives a larger register state to the threads that touch a tile, and to no other.
pub(crate) fn has_bf16() -> bool {
    const BF16: u32 = 1 << 22;
    cpu_has(BF16) && allowed()
}

/// As [`has_bf16`], for tiles of bytes.
pub(crate) fn has_int8() -> bool {
    const INT8: u32 = 1 << 25;
    cpu_has(INT8) && allowed()
}

/// Whether the CPU has tiles and those flags.
fn cpu_has(flags: u32) -> bool {
    const TILE: u32 = 1 << 24;
    // Asked once: in a virtual machine each question stops it, and attention asks at every layer.
    static FEATURES: Lazy<u32> = Lazy::new(|| {
        let highest = std::arch::x86_64::__cpuid(0).eax;
        if highest >= 7 { std::arch::x86_64::__cpuid_count(7, 0).edx } else { 0 }
    });
    let flags = flags | TILE;
    *FEATURES & flags == flags
}

fn allowed() -> bool {
    static ALLOWED: Lazy<bool> = Lazy::new(ask);
    *ALLOWED
}

/// False where the system has no tiles, or refuses because a thread's alternate signal stack is
/// too small for their state.
fn ask() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: the call takes numbers alone and grants a permission; it changes no register.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}
