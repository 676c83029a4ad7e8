//! Memory of activations, used again from operation to operation and from pass to pass: asked of the
//! system each time, its pages would have to be cleared, which cost more than many an operation.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result, Status};
use crate::sys::memory::Memory;

/// Lends buffers, and keeps some of those that are given back. Clones share it.
#[derive(Clone)]
pub(crate) struct Arena(Arc<Shared>);

struct Shared {
    free: Mutex<Vec<Memory>>,
    /// Floats that are kept at the most while nobody uses them.
    keeps: usize,
}

impl Arena {
    /// One that keeps buffers of up to `floats` numbers together; what is more goes back to the
    /// system at once.
    pub(crate) fn new(floats: usize) -> Self {
        Self(Arc::new(Shared { free: Mutex::default(), keeps: floats }))
    }

    /// Room for `length` numbers, whose values are any that were there before.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn lend(&self, length: usize) -> Result<Buffer> {
        let mut free = self.0.free();
        let fitting = free.iter().enumerate().filter(|(_, memory)| memory.floats() >= length);
        let smallest = fitting.min_by_key(|(_, memory)| memory.floats()).map(|(i, _)| i);
        let memory = match smallest {
            Some(i) => free.swap_remove(i),
            None => {
                drop(free);
                let bytes = size_class(length).saturating_mul(size_of::<f32>());
                Memory::zeroed(bytes).map_err(|e| {
                    let what = format!("no memory for {bytes} bytes of activations: {e}");
                    Error::new(Status::OutOfMemory, what)
                })?
            }
        };
        Ok(Buffer { memory: Some(memory), length, arena: self.clone() })
    }
}

impl Shared {
    fn free(&self) -> std::sync::MutexGuard<'_, Vec<Memory>> {
        // Whoever panicked left whole buffers.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_back(&self, memory: Memory) {
        if memory.floats() > self.keeps {
            return;
        }
        let mut free = self.free();
        free.push(memory);
        // Large buffers serve small needs too.
        while free.iter().map(Memory::floats).sum::<usize>() > self.keeps {
            let smallest = free.iter().enumerate().min_by_key(|(_, memory)| memory.floats());
            let Some((i, _)) = smallest else { return };
            free.swap_remove(i);
        }
    }
}

/// `length` rounded up, by an eighth at the most where it matters: a text that is a few tokens longer
/// than the one before shall find its buffers.
fn size_class(length: usize) -> usize {
    let step = (length.checked_next_power_of_two().unwrap_or(length) / 16).max(1024);
    length.max(1).checked_next_multiple_of(step).unwrap_or(length)
}

/// Numbers in memory that an [`Arena`] lent, and gets back when this is dropped.
pub(super) struct Buffer {
    /// Always there until it is dropped.
    memory: Option<Memory>,
    length: usize,
    arena: Arena,
}

impl Buffer {
    pub(super) fn arena(&self) -> &Arena {
        &self.arena
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        self.memory.as_ref().map_or(&[], |memory| &memory.as_floats()[..self.length])
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        let length = self.length;
        self.memory.as_mut().map_or(&mut [], |memory| &mut memory.as_floats_mut()[..length])
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.arena.0.take_back(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_no_more_are_kept_than_may_be() {
        const K: usize = 1024;
        let arena = Arena::new(5 * K);
        let kept = |arena: &Arena| {
            let mut floats: Vec<_> = arena.0.free().iter().map(Memory::floats).collect();
            floats.sort_unstable();
            floats
        };
        let (mut small, large) = (arena.lend(1000).unwrap(), arena.lend(3 * K).unwrap());
        small.fill(7.0);
        drop((small, large));
        assert_eq!(kept(&arena), [K, 3 * K]);
        // The smallest that fits, as it was left.
        let again = arena.lend(500).unwrap();
        assert_eq!(again[..], [7.0; 500]);
        assert_eq!(kept(&arena), [3 * K]);
        // One that is too large to be kept goes back to the system at once, and where they are too
        // many, the smallest do.
        drop(arena.lend(6 * K).unwrap());
        drop(again);
        assert_eq!(kept(&arena), [K, 3 * K]);
        drop(arena.lend(4 * K).unwrap());
        assert_eq!(kept(&arena), [4 * K]);
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        for length in [usize::MAX, usize::MAX / 8] {
            let error = Arena::new(0).lend(length).map(|_| ()).unwrap_err();
            assert_eq!(error.status(), Status::OutOfMemory);
        }
    }
}
