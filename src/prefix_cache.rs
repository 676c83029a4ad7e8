//! What earlier calls ran, found by the tokens that a text begins with.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::engine::{Prefix, common};

/// Fewer tokens than this in common save less than sharing them costs.
const LEAST_COMMON: usize = 8;
/// A text that would take a larger part of the cache is not kept.
const LARGEST_PART: usize = 2;
/// A text's last page takes all of its bytes, however few tokens it holds; of two kinds of pages
/// this is the larger one.
const PAGE_TOKENS: usize = crate::readout::PAGE_TOKENS;
const _: () = assert!(PAGE_TOKENS.is_multiple_of(crate::kernels::PAGE_TOKENS));

/// A bounded cache of prefixes; the one that was used longest ago goes first.
///
/// Texts share what has run only where their tokens are equal from the first one on, so a hit
/// tells nothing but that somebody scored the same beginning.
pub(crate) struct PrefixCache {
    capacity: usize,
    token_bytes: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<Arc<[u32]>, Entry>,
    /// Keys by when they were used last.
    order: BTreeMap<u64, Arc<[u32]>>,
    clock: u64,
    bytes: usize,
}

struct Entry {
    prefix: Prefix,
    used: u64,
}

impl PrefixCache {
    /// A cache of `capacity` bytes for tokens of `token_bytes` each; 0 keeps nothing.
    pub(crate) fn new(capacity: usize, token_bytes: usize) -> Self {
        Self { capacity, token_bytes, state: Mutex::default() }
    }

    /// Whether a text of `tokens` tokens would be kept.
    pub(crate) fn keeps(&self, tokens: usize) -> bool {
        self.is_on() && bytes(tokens, self.token_bytes) <= self.capacity / LARGEST_PART
    }

    /// The longest beginning of `tokens` that is known.
    pub(crate) fn find(&self, tokens: &[u32]) -> Option<Prefix> {
        self.state().find(tokens)
    }

    /// Whether it keeps anything at all.
    pub(crate) fn is_on(&self) -> bool {
        self.capacity > 0
    }

    /// Keeps `prefix`, if it is not too large, in the place of what it goes on from.
    pub(crate) fn insert(&self, prefix: Prefix) {
        if !self.keeps(prefix.tokens().len()) {
            return;
        }
        let mut state = self.state();
        state.insert(prefix, self.token_bytes);
        while state.bytes > self.capacity && state.evict(self.token_bytes) {}
    }

    /// Drops the entry that was used longest ago; false when there is none.
    pub(crate) fn evict(&self) -> bool {
        self.state().evict(self.token_bytes)
    }

    /// How many prefixes it keeps.
    pub(crate) fn entries(&self) -> usize {
        self.state().entries.len()
    }

    /// A cache whose user panicked may hold wrong counts, and no wrong prefix.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an entry of `tokens` tokens takes; less where it shares pages.
fn bytes(tokens: usize, token_bytes: usize) -> usize {
    tokens.next_multiple_of(PAGE_TOKENS).saturating_mul(token_bytes)
}

impl State {
    fn find(&mut self, tokens: &[u32]) -> Option<Prefix> {
        // In the order of the keys, the one with most in common stands next to `tokens`.
        let before = (Bound::Unbounded, Bound::Included(tokens));
        let after = (Bound::Excluded(tokens), Bound::Unbounded);
        let before = self.entries.range::<[u32], _>(before).next_back();
        let after = self.entries.range::<[u32], _>(after).next();
        let (count, key) = before
            .into_iter()
            .chain(after)
            .map(|(key, _)| (common(key, tokens), key.clone()))
            .max_by_key(|(count, _)| *count)?;
        if count < LEAST_COMMON && count < tokens.len() {
            return None;
        }
        self.touch(&key);
        self.entries.get(&key)?.prefix.clone().of(tokens)
    }

    fn touch(&mut self, key: &Arc<[u32]>) {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(key) {
            self.order.remove(&entry.used);
            entry.used = self.clock;
            self.order.insert(self.clock, key.clone());
        }
    }

    fn insert(&mut self, prefix: Prefix, token_bytes: usize) {
        let key: Arc<[u32]> = prefix.tokens().into();
        let longer = (Bound::Included(&*key), Bound::Unbounded);
        let longer = self.entries.range::<[u32], _>(longer).next().map(|(k, _)| k.clone());
        if let Some(longer) = longer.filter(|longer| longer.starts_with(&key)) {
            self.touch(&longer);
            return;
        }
        // What the new entry goes on from is a part of it.
        let shorter = (Bound::Unbounded, Bound::Excluded(&*key));
        let shorter = self.entries.range::<[u32], _>(shorter).next_back().map(|(k, _)| k.clone());
        if let Some(shorter) = shorter.filter(|shorter| key.starts_with(shorter)) {
            self.remove(&shorter, token_bytes);
        }
        self.clock += 1;
        self.bytes += bytes(key.len(), token_bytes);
        self.order.insert(self.clock, key.clone());
        self.entries.insert(key, Entry { prefix, used: self.clock });
    }

    fn evict(&mut self, token_bytes: usize) -> bool {
        let Some((_, key)) = self.order.first_key_value() else { return false };
        let key = key.clone();
        self.remove(&key, token_bytes);
        true
    }

    fn remove(&mut self, key: &Arc<[u32]>, token_bytes: usize) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.used);
            self.bytes -= bytes(key.len(), token_bytes);
        }
    }
}
