//! A GPU: its memory, what is launched on it, and the pages that it keeps.
//!
//! All of it happens on one stream, in the order in which it is asked for. So memory that is given
//! back may be lent again while what was launched before still reads it.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// What was recorded, by a number of the driver's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Graph(pub(super) u64);

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

    /// From here to [`Self::end_capture`], which the same thread calls, launches and products are
    /// recorded instead of done. In between nobody allocates, writes, reads, copies or zeroes on that
    /// thread; others may free.
    ///
    /// On CUDA: `cuStreamBeginCapture` of the one stream, in the thread-local mode. Every product has been
    /// done before; cuBLAS must have been given a workspace (`cublasSetWorkspace`), since it may not
    /// allocate one here.
    fn begin_capture(&self) -> Result<()>;
    /// Ends it, also where something in between has failed; then this may fail as well.
    ///
    /// On CUDA: `cuStreamEndCapture`, `cuGraphInstantiate`, and `cuGraphDestroy` of what was
    /// instantiated.
    fn end_capture(&self) -> Result<Graph>;
    /// Does what was recorded, with what lies in memory by then: `cuGraphLaunch` on the one stream.
    ///
    /// # Safety
    /// The memory that it reads and writes is allocated.
    unsafe fn replay(&self, graph: Graph) -> Result<()>;
    /// `cuGraphExecDestroy`.
    ///
    /// # Safety
    /// Nobody replays it any more.
    unsafe fn free_graph(&self, graph: Graph);
}

/// A GPU that computes with numbers of one kind. Clones share it.
#[derive(Clone)]
pub(crate) struct Gpu {
    shared: Arc<Shared>,
    /// Where it lends from, if that is not what all have in common.
    own: Option<Arc<Own>>,
}

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

/// Memory whose addresses a recording holds: it is lent from there alone.
struct Own {
    shared: Arc<Shared>,
    free: Mutex<HashMap<usize, Vec<u64>>>,
    /// Whether kernels are left out.
    rehearses: AtomicBool,
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
        write!(f, "Gpu({:?})", self.shared.element)
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
        let shared = Arc::new(Shared { driver, element, processors, sizes, lent });
        Self { shared, own: None }
    }

    /// The same GPU, which lends memory that nobody else is lent for as long as somebody has this.
    pub(super) fn with_own_memory(&self) -> Self {
        let shared = self.shared.clone();
        let own = Own { shared, free: Mutex::default(), rehearses: AtomicBool::new(false) };
        Self { shared: self.shared.clone(), own: Some(Arc::new(own)) }
    }

    /// Records what `launches` does with memory of this GPU's own.
    ///
    /// # Errors
    /// Those of `launches`; `OutOfMemory`; `Internal` when the device fails. Nothing but products into its
    /// own memory has been done then.
    pub(super) fn record(&self, launches: &mut dyn FnMut() -> Result<()>) -> Result<Graph> {
        let Some(own) = &self.own else {
            return Err(Error::internal("a recording of memory that others are lent"));
        };
        // Memory lies ready afterwards, and cuBLAS has loaded what each product takes: neither can be
        // done while it is recorded.
        own.rehearses.store(true, Ordering::Relaxed);
        let rehearsed = launches();
        own.rehearses.store(false, Ordering::Relaxed);
        rehearsed?;
        let driver = &self.shared.driver;
        driver.begin_capture()?;
        let launched = launches();
        let graph = driver.end_capture();
        if let (Err(_), Ok(graph)) = (&launched, &graph) {
            // SAFETY: it was recorded just now.
            unsafe { driver.free_graph(*graph) };
        }
        launched.and(graph)
    }

    /// Does what [`Self::record`] has recorded.
    ///
    /// # Safety
    /// What its launches read and write, but for this GPU's own memory, is as they expect it.
    ///
    /// # Errors
    /// `Internal` when the device fails.
    pub(super) unsafe fn replay(&self, graph: Graph) -> Result<()> {
        // SAFETY: own memory lives as long as this; the caller says the rest.
        unsafe { self.shared.driver.replay(graph) }
    }

    /// # Safety
    /// [`Self::record`] gave it, and nobody replays it any more.
    pub(super) unsafe fn free_graph(&self, graph: Graph) {
        // SAFETY: the caller says so.
        unsafe { self.shared.driver.free_graph(graph) };
    }

    fn rehearses(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.rehearses.load(Ordering::Relaxed))
    }

    pub(crate) fn element(&self) -> Element {
        self.shared.element
    }

    pub(crate) fn processors(&self) -> usize {
        self.shared.processors
    }

    /// Memory that holds any values.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` when the device fails.
    pub(super) fn lend(&self, bytes: usize) -> Result<Memory> {
        self.of_class((self.shared.sizes.class)(bytes), bytes)
    }

    fn of_class(&self, class: usize, bytes: usize) -> Result<Memory> {
        let pop = |free: &mut HashMap<usize, Vec<u64>>| free.get_mut(&class).and_then(Vec::pop);
        let ready = match &self.own {
            Some(own) => pop(&mut own.free()),
            None => pop(&mut self.shared.lent().free),
        };
        let address = match ready {
            Some(address) => {
                self.shared.driver.lent_again(address, class);
                address
            }
            None => self.shared.allocate(class)?,
        };
        Ok(Memory { gpu: self.clone(), address, class, bytes })
    }

    /// Memory of just this size that holds any values, for what stays.
    ///
    /// # Errors
    /// As [`Self::lend`].
    pub(super) fn hold(&self, bytes: usize) -> Result<Memory> {
        self.of_class(bytes.max(1), bytes)
    }

    /// Memory with `values` in it.
    ///
    /// # Errors
    /// As [`Self::lend`].
    pub(super) fn upload<T: Pod>(&self, values: &[T]) -> Result<Memory> {
        let memory = self.lend(size_of_val(values))?;
        // SAFETY: the memory has as many bytes.
        unsafe { self.shared.driver.write(memory.address, bytemuck::cast_slice(values))? };
        Ok(memory)
    }

    /// Zeros.
    ///
    /// # Errors
    /// As [`Self::lend`].
    pub(super) fn zeros(&self, bytes: usize) -> Result<Memory> {
        let memory = self.lend(bytes)?;
        // SAFETY: the memory has as many bytes.
        unsafe { self.shared.driver.zero(memory.address, bytes)? };
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
        if grid.blocks.contains(&0) || self.rehearses() {
            return Ok(());
        }
        // SAFETY: the caller says so.
        unsafe {
            self.shared.driver.launch(
                kernel,
                grid,
                std::ptr::from_ref(params).cast(),
                size_of::<P>(),
            )
        }
    }

    /// # Safety
    /// The addresses of `product` are those of memory that lives and is as large as it says.
    ///
    /// # Errors
    /// `Internal`.
    pub(super) unsafe fn multiply(&self, product: Product) -> Result<()> {
        // In a rehearsal, too: own memory takes any numbers.
        if product.rows == 0 {
            return Ok(());
        }
        // SAFETY: the caller says so.
        unsafe { self.shared.driver.multiply(product) }
    }

    /// A page of keys and values that holds any of them.
    ///
    /// # Errors
    /// As [`Self::lend`].
    pub(super) fn page(&self, bytes: usize) -> Result<PageMemory> {
        let mut lent = self.shared.lent();
        let ready = lent.pages.get_mut(&bytes).and_then(Vec::pop);
        let address = match ready {
            Some(address) => {
                self.shared.driver.lent_again(address, bytes);
                address
            }
            None => {
                let count = (self.shared.sizes.slab / bytes.max(1)).max(1);
                drop(lent);
                let slab = self.shared.allocate(bytes * count)?;
                lent = self.shared.lent();
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

impl Own {
    fn free(&self) -> MutexGuard<'_, HashMap<usize, Vec<u64>>> {
        // Whoever panicked left whole lists.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let free = self.free.get_mut().unwrap_or_else(PoisonError::into_inner);
        for address in free.drain().flat_map(|(_, free)| free) {
            // SAFETY: it was allocated, and nobody has it: who has memory has the GPU.
            unsafe { self.shared.driver.free(address) };
        }
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
        unsafe { self.gpu.shared.driver.write(address, bytemuck::cast_slice(values)) }
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
        unsafe { self.gpu.shared.driver.copy(page.address + bytes.start as u64, to, bytes.len()) }
    }

    /// Its first values, once everything that was launched before is done.
    ///
    /// # Errors
    /// `Internal` where there are fewer, or when the device fails.
    pub(super) fn read<T: Pod>(&self, values: &mut [T]) -> Result<()> {
        let address = self.at(values.len(), size_of::<T>())?;
        // SAFETY: it has as many bytes.
        unsafe { self.gpu.shared.driver.read(address, bytemuck::cast_slice_mut(values)) }
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({} bytes)", self.bytes)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let give_back = |free: &mut HashMap<usize, Vec<u64>>| {
            free.entry(self.class).or_default().push(self.address);
        };
        match &self.gpu.own {
            Some(own) => give_back(&mut own.free()),
            None => give_back(&mut self.gpu.shared.lent().free),
        }
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
        unsafe { self.gpu.shared.driver.copy(self.address, copy.address, self.bytes)? };
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
        unsafe { self.gpu.shared.driver.read(self.address, &mut bytes)? };
        Ok(bytes)
    }
}

impl Drop for PageMemory {
    fn drop(&mut self) {
        self.gpu.shared.lent().pages.entry(self.bytes).or_default().push(self.address);
    }
}
