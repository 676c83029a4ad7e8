//! Handles whose value is a checked slot and generation, never an address that is followed.
//!
//! A freed, foreign or wrong-kind handle finds no slot; one from before a `fork` is told so. Each
//! kind has a table of its own, and each process its own tables, so that no lock can be stuck from
//! the parent's threads.

use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::{Error, Result, Status};

const SLOT_BITS: u32 = 24;
const GENERATION_BITS: u32 = 24;
const EPOCH_BITS: u32 = 8;
const SLOTS: usize = 1 << SLOT_BITS;
const GENERATIONS: u32 = 1 << GENERATION_BITS;

const _: () = assert!(size_of::<usize>() == 8, "handles need 64-bit pointers");

/// A kind of handle: the opaque type that C code points to.
pub(super) trait Kind: Sized + 'static {
    /// What a handle of this kind stands for.
    type Object: Send + Sync + 'static;
    /// The kind's name in messages.
    const NAME: &'static str;
    /// The top byte of the kind's handles; user-space addresses have none like it, and no two kinds
    /// the same.
    const TAG: u8;
    /// Where the kind's table is kept.
    fn tables() -> &'static Tables<Self::Object>;
}

/// The place of one kind's table, which changes with a fork.
pub(super) struct Tables<T>(AtomicPtr<Table<T>>);

struct Table<T> {
    process: u32,
    epoch: u8,
    slots: RwLock<Slots<T>>,
}

struct Slots<T> {
    all: Vec<Slot<T>>,
    /// Slots to take before the table grows.
    free: Vec<usize>,
}

struct Slot<T> {
    generation: u32,
    object: Option<Arc<T>>,
}

impl<T> Tables<T> {
    pub(super) const fn new() -> Self {
        Self(AtomicPtr::new(std::ptr::null_mut()))
    }

    /// This process's table. A child of a fork leaks the parent's and starts its own.
    fn here(&'static self) -> &'static Table<T> {
        loop {
            let current = self.0.load(Ordering::Acquire);
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
            let slots = RwLock::new(Slots { all: Vec::new(), free: Vec::new() });
            let fresh = Box::into_raw(Box::new(Table { process, epoch, slots }));
            let swapped =
                self.0.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire);
            if swapped.is_err() {
                // SAFETY: `fresh` was made above and nobody else has seen it.
                drop(unsafe { Box::from_raw(fresh) });
            }
        }
    }
}

/// No call under these locks can leave half a change behind, so a poisoned one is whole.
impl<T> Table<T> {
    fn read(&self) -> RwLockReadGuard<'_, Slots<T>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Slots<T>> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts an object into its kind's table and returns its handle.
///
/// # Errors
/// `LimitExceeded` when 2^24 of the kind are open.
pub(super) fn insert<K: Kind>(object: K::Object) -> Result<*mut K> {
    let table = K::tables().here();
    let mut slots = table.write();
    let index = match slots.free.pop() {
        Some(index) => index,
        None if slots.all.len() < SLOTS => {
            slots.all.push(Slot { generation: 0, object: None });
            slots.all.len() - 1
        }
        None => {
            let words = format!("{SLOTS} handles of the kind {} are open", K::NAME);
            return Err(Error::new(Status::LimitExceeded, words));
        }
    };
    let slot = &mut slots.all[index];
    slot.generation += 1;
    slot.object = Some(Arc::new(object));
    let value = u64::from(K::TAG) << (SLOT_BITS + GENERATION_BITS + EPOCH_BITS)
        | u64::from(table.epoch) << (SLOT_BITS + GENERATION_BITS)
        | u64::from(slot.generation) << SLOT_BITS
        | index as u64;
    Ok(std::ptr::without_provenance_mut(value as usize))
}

/// The object of `handle`.
///
/// # Errors
/// `InvalidArgument` for NULL, `InvalidHandle`, `Forked`.
pub(super) fn get<K: Kind>(handle: *mut K) -> Result<Arc<K::Object>> {
    let (table, generation, index) = parse(handle)?;
    let slots = table.read();
    slots
        .all
        .get(index)
        .filter(|slot| slot.generation == generation)
        .and_then(|slot| slot.object.clone())
        .ok_or_else(freed::<K>)
}

/// Takes the object of `handle` out of its table. Calls that run on it keep it until they end.
///
/// # Errors
/// `InvalidArgument` for NULL, `InvalidHandle`, `Forked`.
pub(super) fn remove<K: Kind>(handle: *mut K) -> Result<Arc<K::Object>> {
    let (table, generation, index) = parse(handle)?;
    let mut slots = table.write();
    let object = slots
        .all
        .get_mut(index)
        .filter(|slot| slot.generation == generation)
        .and_then(|slot| slot.object.take())
        .ok_or_else(freed::<K>)?;
    // A slot whose generations are used up is never taken again.
    if generation + 1 < GENERATIONS {
        slots.free.push(index);
    }
    Ok(object)
}

/// Frees `handle`; NULL does nothing.
///
/// # Errors
/// `InvalidHandle`, `Forked`.
pub(super) fn free<K: Kind>(handle: *mut K) -> Result<()> {
    // The object is dropped here, after the table's lock.
    if handle.is_null() { Ok(()) } else { remove(handle).map(drop) }
}

fn parse<K: Kind>(handle: *mut K) -> Result<(&'static Table<K::Object>, u32, usize)> {
    let value = handle.addr() as u64;
    if value == 0 {
        return Err(Error::argument(format!("{} is NULL", K::NAME)));
    }
    if value >> (SLOT_BITS + GENERATION_BITS + EPOCH_BITS) != u64::from(K::TAG) {
        let words = format!("this is not a {}'s handle", K::NAME);
        return Err(Error::new(Status::InvalidHandle, words));
    }
    let table = K::tables().here();
    if (value >> (SLOT_BITS + GENERATION_BITS)) as u8 != table.epoch {
        return Err(Error::new(
            Status::Forked,
            format!("this {} was opened before the process forked: open one after it", K::NAME),
        ));
    }
    let generation = (value >> SLOT_BITS) as u32 & (GENERATIONS - 1);
    Ok((table, generation, value as usize & (SLOTS - 1)))
}

fn freed<K: Kind>() -> Error {
    Error::new(Status::InvalidHandle, format!("this {} was freed, or never opened", K::NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! kind {
        ($name:ident, $tag:literal) => {
            struct $name;
            impl Kind for $name {
                type Object = u32;
                const NAME: &'static str = "thing";
                const TAG: u8 = $tag;
                fn tables() -> &'static Tables<u32> {
                    static TABLES: Tables<u32> = Tables::new();
                    &TABLES
                }
            }
        };
    }

    fn status<T>(result: Result<T>) -> Status {
        result.map(drop).unwrap_err().status()
    }

    #[test]
    fn a_freed_slot_is_used_again_and_its_old_handle_never() {
        kind!(Thing, 0xA0);
        kind!(Other, 0xA1);
        let first: *mut Thing = insert(1).unwrap();
        let second: *mut Thing = insert(2).unwrap();
        assert_eq!((*get(first).unwrap(), *get(second).unwrap()), (1, 2));
        assert_eq!(*remove(first).unwrap(), 1);
        assert_eq!(status(remove(first)), Status::InvalidHandle);
        let third: *mut Thing = insert(3).unwrap();
        assert_eq!(third.addr() & (SLOTS - 1), first.addr() & (SLOTS - 1));
        assert_eq!(status(get(first)), Status::InvalidHandle);
        assert_eq!(*get(third).unwrap(), 3);
        assert_eq!(status(get(third.cast::<Other>())), Status::InvalidHandle);
        assert_eq!(status(get(std::ptr::null_mut::<Thing>())), Status::InvalidArgument);
        assert_eq!(Thing::tables().here().read().all.len(), 2);
    }

    #[test]
    fn a_slot_without_generations_left_is_retired() {
        kind!(Thing, 0xA2);
        let handle: *mut Thing = insert(1).unwrap();
        remove(handle).unwrap();
        Thing::tables().here().write().all[0].generation = GENERATIONS - 2;
        let last: *mut Thing = insert(2).unwrap();
        assert_eq!(*remove(last).unwrap(), 2);
        let next: *mut Thing = insert(3).unwrap();
        assert_eq!(next.addr() & (SLOTS - 1), 1);
    }
}
