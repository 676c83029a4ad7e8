//! A GPU: its memory, what is launched on it, and the pages that it keeps.
//!
//! All of it happens on one stream, in the order in which it is asked for. So memory that is given
//! back may be lent again while what was launched before still reads it.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;

use crate::error::{Error, Result, Status};

/// What numbers on the GPU are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    Bf16,
}

impl Element {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// `kernel` for numbers of this kind.
    pub(super) fn of(self, kernel: &'static str) -> String {
        let kind = match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        };
        format!("{kernel}_{kind}")
    }
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) blocks: [usize; 3],
    /// Threads of a block, whole warps.
    pub(super) threads: u32,
    /// Bytes of shared memory of a block.
    pub(super) shared: usize,
}

/// `y = x W^T`: `[rows, inputs]`, `[outputs, inputs]`, `[rows, outputs]`, row-major.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub(super) x: u64,
    pub(super) weight: u64,
    pub(super) y: u64,
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) element: Element,
}

/// What a GPU does. Everything but [`Self::read`] may return before it is done.
///
/// # Safety
/// Addresses and lengths must lie in memory that was allocated and is not freed, and a kernel's
/// parameters must be those that it expects.
pub(super) trait Driver: Send + Sync {
    /// Memory that holds any values, at an address that is a multiple of 256.
    fn allocate(&self, bytes: usize) -> Result<u64>;
    /// Memory that was allocated before is to hold any values again.
    fn lent_again(&self, _address: u64, _bytes: usize) {}
    unsafe fn free(&self, address: u64);
    unsafe fn write(&self, to: u64, from: &[u8]) -> Result<()>;
    /// Waits for all that was asked for before.
    unsafe fn read(&self, from: u64, to: &mut [u8]) -> Result<()>;
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;
    unsafe fn zero(&self, to: u64, bytes: usize) -> Result<()>;
    /// `params` points to `bytes` bytes, which are read at once.
    unsafe fn launch(
        &self,
        kernel: &str,
        grid: Grid,
        params: *const c_void,
        bytes: usize,
    ) -> Result<()>;
    unsafe fn multiply(&self, product: Product) -> Result<()>;
}

/// A GPU that computes with numbers of one kind. Clones share it.
#[derive(Clone)]
pub(crate) struct Gpu(Arc<Shared>);

struct Shared {
    driver: Box<dyn Driver>,
    element: Element,
    /// Multiprocessors.
    processors: usize,
    sizes: Sizes,
    lent: Mutex<Lent>,
}

/// What is allocated at once.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// Bytes for so many that are asked for: few sizes, so that what is given back fits again.
    pub(super) class: fn(usize) -> usize,
    /// Bytes of the memory that pages are cut from, at the most where that is a page.
    pub(super) slab: usize,
}

/// What lies ready to be lent again.
#[derive(Default)]
struct Lent {
    /// By size.
    free: HashMap<usize, Vec<u64>>,
    /// By the size of a page.
    pages: HashMap<usize, Vec<u64>>,
    slabs: Vec<u64>,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({:?})", self.0.element)
    }
}

impl Gpu {
    pub(super) fn new(
        driver: Box<dyn Driver>,
        element: Element,
        processors: usize,
        sizes: Sizes,
    ) -> Self {
        let lent = Mutex::default();
        Self(Arc::new(Shared { driver, element, processors, sizes, lent }))
    }

    pub(crate) fn element(&self) -> Element {
        self.0.element
    }

    pub(crate) fn processors(&self) -> usize {
        self.0.processors
    }

    /// Memory that holds any values.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` when the device fails.
    pub(super) fn lend(&self, bytes: usize) -> Result<Memory> {
        let class = (self.0.sizes.class)(bytes);
        let ready = self.0.lent().free.get_mut(&class).and_then(Vec::pop);
        let address = match ready {
            Some(address) => {
                self.0.driver.lent_again(address, class);
                address
            }
            None => self.0.allocate(class)?,
        };
        Ok(Memory { gpu: self.clone(), address, class, bytes })
    }

    /// Memory of just this size that holds any values, for what stays.
    ///
    /// # Errors
    /// As [`Self::lend`].
    pub(super) fn hold(&self, bytes: usize) -> Result<Memory> {
        let class = bytes.max(1);
        Ok(Memory { gpu: self.clone(), address: self.0.allocate(class)?, class, bytes })
    }

    /// Memory with `values` in it.
    ///
    /// # Errors
    /// As [`Self::lend`].
    pub(super) fn upload<T: Pod>(&self, values: &[T]) -> Result<Memory> {
        let memory = self.lend(size_of_val(values))?;
        // SAFETY: the memory has as many bytes.
        unsafe { self.0.driver.write(memory.address, bytemuck::cast_slice(values))? };
        Ok(memory)
    }

    /// Zeros.
    ///
    /// # Errors
    /// As [`Self::lend`].
    pub(super) fn zeros(&self, bytes: usize) -> Result<Memory> {
        let memory = self.lend(bytes)?;
        // SAFETY: the memory has as many bytes.
        unsafe { self.0.driver.zero(memory.address, bytes)? };
        Ok(memory)
    }

    /// Launches `kernel`, if its grid has a block.
    ///
    /// # Safety
    /// The addresses in `params` are those of memory that lives and that has what the kernel reads
    /// and writes, and `params` is what the kernel takes.
    ///
    /// # Errors
    /// `Internal`, which names the kernel.
    pub(super) unsafe fn launch<P>(&self, kernel: &str, grid: Grid, params: &P) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        // SAFETY: the caller says so.
        unsafe {
            self.0.driver.launch(kernel, grid, std::ptr::from_ref(params).cast(), size_of::<P>())
        }
    }

    /// # Safety
    /// The addresses of `product` are those of memory that lives and is as large as it says.
    ///
    /// # Errors
    /// `Internal`.
    pub(super) unsafe fn multiply(&self, product: Product) -> Result<()> {
        if product.rows == 0 {
            return Ok(());
        }
        // SAFETY: the caller says so.
        unsafe { self.0.driver.multiply(product) }
    }

    /// A page of keys and values that holds any of them.
    ///
    /// # Errors
    /// As [`Self::lend`].
    pub(super) fn page(&self, bytes: usize) -> Result<PageMemory> {
        let mut lent = self.0.lent();
        let ready = lent.pages.get_mut(&bytes).and_then(Vec::pop);
        let address = match ready {
            Some(address) => {
                self.0.driver.lent_again(address, bytes);
                address
            }
            None => {
                let count = (self.0.sizes.slab / bytes.max(1)).max(1);
                drop(lent);
                let slab = self.0.allocate(bytes * count)?;
                lent = self.0.lent();
                lent.slabs.push(slab);
                let rest = (1..count).rev().map(|i| slab + (i * bytes) as u64);
                lent.pages.entry(bytes).or_default().extend(rest);
                slab
            }
        };
        drop(lent);
        Ok(PageMemory { gpu: self.clone(), address, bytes })
    }
}

impl Shared {
    fn lent(&self) -> MutexGuard<'_, Lent> {
        // Whoever panicked left whole lists.
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Once more where memory that lies ready has been given back.
    fn allocate(&self, bytes: usize) -> Result<u64> {
        match self.driver.allocate(bytes) {
            Err(error) if error.status() == Status::OutOfMemory => {
                for address in self.lent().free.drain().flat_map(|(_, free)| free) {
                    // SAFETY: it was allocated, and nobody has it.
                    unsafe { self.driver.free(address) };
                }
                self.driver.allocate(bytes)
            }
            allocated => allocated,
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let lent = self.lent.get_mut().unwrap_or_else(PoisonError::into_inner);
        let free = lent.free.drain().flat_map(|(_, free)| free);
        for address in free.chain(lent.slabs.drain(..)) {
            // SAFETY: it was allocated, and nobody has it: who has memory has the GPU.
            unsafe { self.driver.free(address) };
        }
    }
}

/// Memory that is lent.
pub(crate) struct Memory {
    gpu: Gpu,
    address: u64,
    class: usize,
    bytes: usize,
}

impl Memory {
    /// What lends the results that are computed from it.
    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where its first `count` values of `size` bytes lie.
    ///
    /// # Errors
    /// `Internal` where it is smaller.
    pub(super) fn at(&self, count: usize, size: usize) -> Result<u64> {
        if count.saturating_mul(size) <= self.bytes {
            return Ok(self.address);
        }
        Err(Error::internal(format!("{} bytes on the GPU for {count} of {size}", self.bytes)))
    }

    /// Where the values from byte `offset` on lie.
    pub(super) fn inside(&self, offset: usize) -> u64 {
        debug_assert!(offset <= self.bytes);
        self.address + offset as u64
    }

    /// Writes values from byte `offset` on.
    ///
    /// # Errors
    /// `Internal` where it is smaller, or when the device fails.
    pub(super) fn write<T: Pod>(&self, offset: usize, values: &[T]) -> Result<()> {
        let address = self.at(offset + size_of_val(values), 1)? + offset as u64;
        // SAFETY: it has as many bytes.
        unsafe { self.gpu.0.driver.write(address, bytemuck::cast_slice(values)) }
    }

    /// Takes some of a page's bytes to its own from `offset` on.
    ///
    /// # Errors
    /// `Internal` where there are fewer, or when the device fails.
    pub(super) fn copy_from_page(
        &self,
        offset: usize,
        page: &PageMemory,
        bytes: Range<usize>,
    ) -> Result<()> {
        let to = self.at(offset + bytes.len(), 1)? + offset as u64;
        if bytes.end > page.bytes {
            return Err(Error::internal(format!("{bytes:?} of a page of {}", page.bytes)));
        }
        // SAFETY: both have as many bytes.
        unsafe { self.gpu.0.driver.copy(page.address + bytes.start as u64, to, bytes.len()) }
    }

    /// Its first values, once everything that was launched before is done.
    ///
    /// # Errors
    /// `Internal` where there are fewer, or when the device fails.
    pub(super) fn read<T: Pod>(&self, values: &mut [T]) -> Result<()> {
        let address = self.at(values.len(), size_of::<T>())?;
        // SAFETY: it has as many bytes.
        unsafe { self.gpu.0.driver.read(address, bytemuck::cast_slice_mut(values)) }
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({} bytes)", self.bytes)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.gpu.0.lent().free.entry(self.class).or_default().push(self.address);
    }
}

/// Memory of one page.
pub(super) struct PageMemory {
    gpu: Gpu,
    pub(super) address: u64,
    bytes: usize,
}

impl PageMemory {
    /// Another page that holds the same.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` when the device fails.
    pub(super) fn copied(&self) -> Result<Self> {
        let copy = self.gpu.page(self.bytes)?;
        // SAFETY: both have as many bytes.
        unsafe { self.gpu.0.driver.copy(self.address, copy.address, self.bytes)? };
        Ok(copy)
    }

    /// What it holds, once everything that was launched before is done.
    ///
    /// # Errors
    /// `Internal` when the device fails.
    #[cfg(test)]
    pub(super) fn read(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.bytes];
        // SAFETY: it has as many bytes.
        unsafe { self.gpu.0.driver.read(self.address, &mut bytes)? };
        Ok(bytes)
    }
}

impl Drop for PageMemory {
    fn drop(&mut self) {
        self.gpu.0.lent().pages.entry(self.bytes).or_default().push(self.address);
    }
}
