//! Weights, as they go from a checkpoint to the GPU.

use half::bf16;

use super::gpu::{Element, Gpu, Memory};
use crate::checkpoint::Values;
use crate::error::Result;

/// Numbers that are converted at once.
const STEP: usize = 1 << 20;

impl Gpu {
    /// The values one after the other, `count` of each, in the numbers that the GPU computes with.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` when the device fails.
    pub(crate) fn weights<'v>(
        &self,
        parts: impl Iterator<Item = (&'v Values<'v>, usize)> + Clone,
    ) -> Result<Memory> {
        let size = self.element().bytes();
        let all: usize = parts.clone().map(|(_, count)| count).sum();
        let memory = self.hold(all * size)?;
        let mut at = 0;
        for (values, count) in parts {
            match (values, self.element()) {
                (Values::F32(values), Element::F32) => memory.write(at * size, &values[..count])?,
                (Values::Bf16(values), Element::Bf16) => {
                    memory.write(at * size, &values[..count])?;
                }
                _ => self.converted(&memory, at, values, count)?,
            }
            at += count;
        }
        Ok(memory)
    }

    fn converted(&self, to: &Memory, at: usize, values: &Values<'_>, count: usize) -> Result<()> {
        let size = self.element().bytes();
        let mut wide = Vec::with_capacity(STEP.min(count));
        for start in (0..count).step_by(STEP) {
            wide.clear();
            values.widen_into(start..count.min(start + STEP), &mut wide);
            match self.element() {
                Element::F32 => to.write((at + start) * size, &wide)?,
                Element::Bf16 => {
                    let narrow: Vec<bf16> = wide.iter().map(|&x| bf16::from_f32(x)).collect();
                    to.write((at + start) * size, &narrow)?;
                }
            }
        }
        Ok(())
    }

    /// `values` as f32, for norms.
    ///
    /// # Errors
    /// As [`Self::weights`].
    pub(crate) fn vector(&self, values: &[f32]) -> Result<Memory> {
        let memory = self.hold(size_of_val(values))?;
        memory.write(0, values)?;
        Ok(memory)
    }
}
