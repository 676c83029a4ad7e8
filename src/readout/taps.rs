//! The selected neurons of a text's tokens, token by token, with running sums: the mean over any
//! of the text's beginnings, in the same bits whatever ran when.

use std::ops::Range;
use std::sync::Arc;

use super::running;
use crate::error::{Error, Result};
use crate::kernels::{Charge, Meter, zeros};

/// Tokens of a page.
pub(crate) const PAGE_TOKENS: usize = 32;

/// Pages of selected neurons that clones share.
#[derive(Clone)]
pub(crate) struct Taps {
    features: usize,
    /// Tokens whose neurons are known at every layer.
    tokens: usize,
    pages: Vec<Arc<Page>>,
    meter: Meter,
}

struct Page {
    /// Sums over all tokens before the page, `[features]`. In f64, in the order of the tokens.
    before: Vec<f64>,
    /// `[PAGE_TOKENS, features]`
    values: Vec<f32>,
    _charge: Charge,
}

impl Taps {
    pub(super) fn new(features: usize, meter: &Meter) -> Self {
        Self { features, tokens: 0, pages: vec![], meter: meter.clone() }
    }

    /// Bytes of one token.
    pub(super) fn token_bytes(features: usize) -> usize {
        (features * (PAGE_TOKENS * size_of::<f32>() + size_of::<f64>())).div_ceil(PAGE_TOKENS)
    }

    /// Makes room for `tokens` tokens; those after the known ones may be written then.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn reserve(&mut self, tokens: usize) -> Result<()> {
        let features = self.features;
        let charge = || self.meter.charge(PAGE_TOKENS * Self::token_bytes(features));
        for page in self.pages.iter_mut().skip(self.tokens / PAGE_TOKENS) {
            if Arc::get_mut(page).is_none() {
                let (mut before, mut values) = (zeros(features)?, zeros(PAGE_TOKENS * features)?);
                before.copy_from_slice(&page.before);
                values.copy_from_slice(&page.values);
                *page = Arc::new(Page { before, values, _charge: charge() });
            }
        }
        while self.pages.len() * PAGE_TOKENS < tokens {
            let (before, values) = (zeros(features)?, zeros(PAGE_TOKENS * features)?);
            self.pages.push(Arc::new(Page { before, values, _charge: charge() }));
        }
        Ok(())
    }

    /// The neurons of a token that room was made for.
    ///
    /// # Errors
    /// `Internal` when none was.
    pub(super) fn row_mut(&mut self, token: usize) -> Result<&mut [f32]> {
        let features = self.features;
        let at = token % PAGE_TOKENS * features;
        let page = self.pages.get_mut(token / PAGE_TOKENS).and_then(Arc::get_mut);
        let page = page.ok_or_else(|| Error::internal("no room for a token's neurons"))?;
        Ok(&mut page.values[at..at + features])
    }

    /// Says that the first `tokens` are known.
    ///
    /// # Errors
    /// `Internal` when there is no room for them.
    pub(super) fn complete(&mut self, tokens: usize) -> Result<()> {
        for page in (self.tokens / PAGE_TOKENS).max(1)..self.pages.len() {
            let sums = self.sums_from(page - 1, page * PAGE_TOKENS);
            let page = self.pages.get_mut(page).and_then(Arc::get_mut);
            page.ok_or_else(|| Error::internal("a page of neurons is shared"))?.before = sums;
        }
        self.tokens = tokens;
        Ok(())
    }

    /// Forgets all but the first `tokens`.
    pub(crate) fn truncate(&mut self, tokens: usize) {
        self.tokens = self.tokens.min(tokens);
        self.pages.truncate(tokens.div_ceil(PAGE_TOKENS));
    }

    /// Shows, for each of `lasts`, the sums over the tokens up to it and with it, `[features]`.
    ///
    /// # Errors
    /// Those of `show`; `Internal` for a token that is not known.
    pub(super) fn running_sums(
        &self,
        lasts: Range<usize>,
        mut show: impl FnMut(usize, &[f64]) -> Result<()>,
    ) -> Result<()> {
        if lasts.end > self.tokens {
            return Err(Error::internal("sums of a token that has not run"));
        }
        let mut sums = self.sums_from(lasts.start / PAGE_TOKENS, lasts.start);
        for token in lasts {
            self.add(token, &mut sums);
            show(token, &sums)?;
        }
        Ok(())
    }

    /// Sums over the first `tokens`, of which the last are in `page` or end before it.
    fn sums_from(&self, page: usize, tokens: usize) -> Vec<f64> {
        let mut sums =
            self.pages.get(page).map_or_else(|| vec![0.0; self.features], |p| p.before.clone());
        for token in page * PAGE_TOKENS..tokens {
            self.add(token, &mut sums);
        }
        sums
    }

    fn add(&self, token: usize, sums: &mut [f64]) {
        let row = &self.pages[token / PAGE_TOKENS].values[token % PAGE_TOKENS * self.features..];
        running::add(sums, row.iter().copied());
    }
}
