//! The AMX tile unit, which Linux lets a process use only once it has asked.
#![allow(unsafe_code)] // One system call.

use once_cell::sync::Lazy;

/// Whether the CPU multiplies tiles of bf16 and this process may use them. Asks the system once,
/// which gives a larger register state to the threads that touch a tile, and to no other.
pub(crate) fn has_bf16() -> bool {
    static ALLOWED: Lazy<bool> = Lazy::new(|| cpu_has_bf16_tiles() && ask());
    *ALLOWED
}

fn cpu_has_bf16_tiles() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    let highest = std::arch::x86_64::__cpuid(0).eax;
    let has = |flags| std::arch::x86_64::__cpuid_count(7, 0).edx & flags == flags;
    highest >= 7 && has(BF16 | TILE)
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
