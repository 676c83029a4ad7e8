//! Handles whose value is a checked slot and generation, never an address that is followed.
//!
//! A freed, foreign or wrong-kind handle finds no slot; one from before a `fork` is told so. Each
//! process has a table of its own, so that no lock can be stuck from the parent's threads.

use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{Error, Result, Status};
use crate::guard::Guard;

const SLOT_BITS: u32 = 24;
const GENERATION_BITS: u32 = 24;
const EPOCH_BITS: u32 = 8;
const SLOTS: usize = 1 << SLOT_BITS;
/// The top byte of every guard handle; user-space addresses have none like it.
const GUARD_KIND: u64 = 0xA7;

const _: () = assert!(size_of::<usize>() == 8, "handles need 64-bit pointers");

struct Table {
    process: u32,
    epoch: u8,
    slots: RwLock<Vec<Slot>>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    guard: Option<Arc<Guard>>,
}

static TABLE: AtomicPtr<Table> = AtomicPtr::new(std::ptr::null_mut());

/// This process's table. A child of a fork leaks the parent's and starts its own.
fn table() -> &'static Table {
    loop {
        let current = TABLE.load(Ordering::Acquire);
        // SAFETY: tables are leaked, so a pointer that was ever stored stays valid; the fields
        // that are read before the lock never change.
        let existing = unsafe { current.as_ref() };
        let process = std::process::id();
        if let Some(table) = existing
            && table.process == process
        {
            return table;
        }
        let epoch = existing.map_or(0, |table| table.epoch.wrapping_add(1));
        let fresh = Box::into_raw(Box::new(Table { process, epoch, slots: RwLock::default() }));
        let swapped = TABLE.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire);
        if swapped.is_err() {
            // SAFETY: `fresh` was made above and nobody else has seen it.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}

/// Puts a guard into the table and returns its handle.
///
/// # Errors
/// `LimitExceeded` when 2^24 guards are open.
pub(super) fn insert(guard: Guard) -> Result<u64> {
    let table = table();
    let mut slots = table.slots.write().unwrap_or_else(PoisonError::into_inner);
    // A slot whose generations are used up is never taken again.
    let usable = |slot: &Slot| slot.guard.is_none() && slot.generation + 1 < 1 << GENERATION_BITS;
    let index = match slots.iter().position(usable) {
        Some(index) => index,
        None if slots.len() < SLOTS => {
            slots.push(Slot::default());
            slots.len() - 1
        }
        None => return Err(Error::new(Status::LimitExceeded, "too many open guards")),
    };
    let slot = &mut slots[index];
    slot.generation += 1;
    slot.guard = Some(Arc::new(guard));
    Ok(GUARD_KIND << (SLOT_BITS + GENERATION_BITS + EPOCH_BITS)
        | u64::from(table.epoch) << (SLOT_BITS + GENERATION_BITS)
        | u64::from(slot.generation) << SLOT_BITS
        | index as u64)
}

/// The guard of `handle`.
///
/// # Errors
/// `InvalidArgument` for NULL, `InvalidHandle`, `Forked`.
pub(super) fn get(handle: u64) -> Result<Arc<Guard>> {
    let (table, generation, index) = parse(handle)?;
    let slots = table.slots.read().unwrap_or_else(PoisonError::into_inner);
    slots
        .get(index)
        .filter(|slot| slot.generation == generation)
        .and_then(|slot| slot.guard.clone())
        .ok_or_else(freed)
}

/// Takes the guard of `handle` out of the table.
///
/// # Errors
/// `InvalidArgument` for NULL, `InvalidHandle`, `Forked`.
pub(super) fn remove(handle: u64) -> Result<Arc<Guard>> {
    let (table, generation, index) = parse(handle)?;
    let mut slots = table.slots.write().unwrap_or_else(PoisonError::into_inner);
    slots
        .get_mut(index)
        .filter(|slot| slot.generation == generation)
        .and_then(|slot| slot.guard.take())
        .ok_or_else(freed)
}

fn parse(handle: u64) -> Result<(&'static Table, u32, usize)> {
    if handle == 0 {
        return Err(Error::argument("guard is NULL"));
    }
    if handle >> (SLOT_BITS + GENERATION_BITS + EPOCH_BITS) != GUARD_KIND {
        return Err(Error::new(Status::InvalidHandle, "this is not a guard's handle"));
    }
    let table = table();
    if (handle >> (SLOT_BITS + GENERATION_BITS)) as u8 != table.epoch {
        return Err(Error::new(
            Status::Forked,
            "this guard was opened before the process forked: open one after the fork",
        ));
    }
    let generation = (handle >> SLOT_BITS) as u32 & ((1 << GENERATION_BITS) - 1);
    Ok((table, generation, handle as usize & (SLOTS - 1)))
}

fn freed() -> Error {
    Error::new(Status::InvalidHandle, "this guard was freed, or never opened")
}
