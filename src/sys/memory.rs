//! Zeroed memory straight from the system, which goes back to it at once.

use memmap2::MmapMut;

/// Anonymous memory, aligned to a page.
pub(crate) struct Memory(MmapMut);

impl Memory {
    /// `bytes` zeros, at least one, on huge pages where they fit and the system leaves the choice to
    /// programs: they are faulted in in half the time, and miss the TLB less.
    ///
    /// # Errors
    /// The system's, when there is no memory.
    pub(crate) fn zeroed(bytes: usize) -> std::io::Result<Self> {
        let map = MmapMut::map_anon(bytes)?;
        // It may be refused, and then nothing is lost.
        #[cfg(all(target_os = "linux", not(miri)))]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self(map))
    }

    /// How many `f32` fit.
    pub(crate) fn floats(&self) -> usize {
        self.0.len() / size_of::<f32>()
    }

    /// As numbers.
    pub(crate) fn as_floats(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0[..self.floats() * size_of::<f32>()])
    }

    /// As numbers, to change.
    pub(crate) fn as_floats_mut(&mut self) -> &mut [f32] {
        let length = self.floats() * size_of::<f32>();
        bytemuck::cast_slice_mut(&mut self.0[..length])
    }
}
