//! An allocator that remembers what every allocation was asked for, and ends the process when it
//! is given back as something else: most allocators do not look, and the error shows elsewhere.
//!
//! It watches the library as it is linked into this test. The shared library brings its own; under
//! that one stand valgrind and AddressSanitizer.
#![allow(unsafe_code)] // Allocators are unsafe by nature.

use std::alloc::{GlobalAlloc, Layout, System};

#[global_allocator]
static ALLOCATOR: Recorder = Recorder;

struct Recorder;

/// What stands before every allocation.
#[derive(Clone, Copy, PartialEq)]
#[repr(C)]
struct Record {
    size: usize,
    align: usize,
}

/// Room for a record, such that what follows is aligned.
fn offset(layout: Layout) -> usize {
    layout.align().max(size_of::<Record>())
}

fn with_record(layout: Layout) -> Option<Layout> {
    let align = layout.align().max(align_of::<Record>());
    Layout::from_size_align(layout.size().checked_add(offset(layout))?, align).ok()
}

/// Whether `pointer`, an allocation of [`Recorder`]'s, was asked for with `layout`.
///
/// # Safety
/// `pointer` came from [`Recorder`] and is not freed.
unsafe fn is_as_asked(pointer: *mut u8, layout: Layout) -> bool {
    // SAFETY: the record lies right before every allocation, whatever its layout.
    let record = unsafe { pointer.cast::<Record>().sub(1).read_unaligned() };
    record == Record { size: layout.size(), align: layout.align() }
}

// SAFETY: memory comes from the system's allocator, moved on by a multiple of its alignment.
unsafe impl GlobalAlloc for Recorder {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(whole) = with_record(layout) else { return std::ptr::null_mut() };
        // SAFETY: `whole` is not empty.
        let start = unsafe { System.alloc(whole) };
        if start.is_null() {
            return start;
        }
        // SAFETY: the offset lies inside, and so does the record before it.
        unsafe {
            let pointer = start.add(offset(layout));
            let record = Record { size: layout.size(), align: layout.align() };
            pointer.cast::<Record>().sub(1).write_unaligned(record);
            pointer
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, as far as it holds.
        if !unsafe { is_as_asked(pointer, layout) } {
            // Nothing that allocates may run here.
            std::process::abort();
        }
        // SAFETY: as it was allocated; a second free finds no record.
        unsafe {
            pointer.cast::<Record>().sub(1).write_unaligned(Record { size: usize::MAX, align: 0 });
            if let Some(whole) = with_record(layout) {
                System.dealloc(pointer.sub(offset(layout)), whole);
            }
        }
    }
}

#[test]
fn a_layout_that_was_not_asked_for_is_seen() {
    let asked = Layout::from_size_align(24, 8).unwrap();
    // SAFETY: not empty; given back below as it was asked for.
    let pointer = unsafe { ALLOCATOR.alloc(asked) };
    let others = [(23, 8), (25, 8), (24, 4), (24, 16), (0, 1)];
    for (size, align) in others {
        let other = Layout::from_size_align(size, align).unwrap();
        // SAFETY: allocated above.
        assert!(!unsafe { is_as_asked(pointer, other) }, "{size}, {align}");
    }
    // SAFETY: as above.
    assert!(unsafe { is_as_asked(pointer, asked) });
    // SAFETY: as above.
    unsafe { ALLOCATOR.dealloc(pointer, asked) };
}
