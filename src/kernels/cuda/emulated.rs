//! A GPU that is none: the kernels' own source, compiled for the CPU by `emulate/emulate.h`, and the
//! host's memory as the device's. For tests.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_uint, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use half::bf16;

use super::gpu::{Driver, Element, Gpu, Graph, Grid, Product, Sizes};
use super::names;
use crate::error::{Error, Result, Status};

/// What compiled code is checked with besides: options of the compiler, for `scripts/full-tier.sh`.
const OPTIONS: &str = "SIREN_EMULATOR_CXXFLAGS";

type Launch = unsafe extern "C" fn(
    *const c_char,
    *const c_uint,
    c_uint,
    usize,
    *const c_void,
    usize,
    bool,
) -> *const c_char;

/// The kernels' library, of a process.
struct Library(*mut c_void);

// SAFETY: the loader's handles may be used on any thread.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    fn symbol(&self, name: &str) -> *mut c_void {
        let name = CString::new(name).unwrap();
        // SAFETY: a library that stays loaded, and a C string.
        unsafe { libc::dlsym(self.0, name.as_ptr()) }
    }
}

/// Whether the kernels' source has a function of this very name.
pub(super) fn exports(name: &str) -> bool {
    !compiled().symbol(name).is_null()
}

/// The kernels, compiled once a process.
fn compiled() -> &'static Library {
    static COMPILED: OnceLock<Library> = OnceLock::new();
    COMPILED.get_or_init(|| {
        let source =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels/cuda/emulate/emulate.cpp");
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libemulated.so");
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        let mut command = Command::new(&compiler);
        command.args([
            "-std=c++17",
            "-O1",
            "-g",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
        ]);
        let options = std::env::var(OPTIONS).unwrap_or_default();
        command.args(options.split_whitespace());
        command.arg("-o").arg(&library).arg(&source);
        let status = command.status().unwrap_or_else(|e| panic!("a C++ compiler, {compiler}: {e}"));
        assert!(status.success(), "{command:?}");
        let path = CString::new(library.to_str().unwrap()).unwrap();
        if !options.is_empty() {
            // A report has lines of the source while the file is there.
            let _ = folder.keep();
        }
        // SAFETY: it is this test's own library.
        unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
            assert!(!handle.is_null(), "{:?}", CStr::from_ptr(libc::dlerror()));
            Library(handle)
        }
    })
}

/// Which GPU is emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emulation {
    /// In which order a block's threads run.
    pub(crate) ascending: bool,
    /// Bytes that there are.
    pub(crate) capacity: usize,
    /// Multiprocessors that it says it has.
    pub(crate) processors: usize,
    /// Whether launches can be recorded.
    pub(crate) has_graphs: bool,
    /// The kernel, or `product`, that does nothing.
    pub(crate) without: Option<&'static str>,
}

impl Default for Emulation {
    fn default() -> Self {
        Self { ascending: true, capacity: 1 << 28, processors: 4, has_graphs: true, without: None }
    }
}

impl Emulation {
    /// Every buffer and page is an allocation of its own size and begins as NaN.
    pub(crate) fn gpu(self, element: Element) -> Gpu {
        let symbol = compiled().symbol("emulate_launch");
        assert!(!symbol.is_null());
        // SAFETY: `emulate_launch` is of that type.
        let launch = unsafe { std::mem::transmute::<*mut c_void, Launch>(symbol) };
        let driver = Emulated {
            launch,
            emulation: self,
            allocated: Mutex::default(),
            recording: Mutex::default(),
            graphs: Mutex::default(),
        };
        let sizes = Sizes { class: |bytes| bytes.max(1), slab: 1 };
        Gpu::new(Box::new(driver), element, self.processors, sizes)
    }
}

/// See the module.
struct Emulated {
    launch: Launch,
    emulation: Emulation,
    allocated: Mutex<HashMap<u64, Layout>>,
    /// What is recorded now.
    recording: Mutex<Option<Vec<Step>>>,
    graphs: Mutex<HashMap<Graph, Vec<Step>>>,
}

/// What a graph does, in its order.
#[derive(Clone)]
enum Step {
    /// The parameters lie as numbers of eight bytes, so that they are aligned.
    Launch {
        kernel: CString,
        grid: Grid,
        params: Vec<u64>,
        bytes: usize,
    },
    Multiply(Product),
}

impl Emulated {
    /// Takes `step` into the recording, if there is one.
    fn is_recorded(&self, step: impl FnOnce() -> Step) -> bool {
        let mut recording = self.recording.lock().unwrap();
        recording.as_mut().map(|steps| steps.push(step())).is_some()
    }

    fn is_without(&self, what: &str) -> bool {
        self.emulation.without.is_some_and(|without| what.starts_with(without))
    }

    fn done_at_once(&self) -> Result<()> {
        match *self.recording.lock().unwrap() {
            Some(_) => Err(Error::internal("something that no graph records")),
            None => Ok(()),
        }
    }
}

impl Driver for Emulated {
    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.done_at_once()?;
        let mut allocated = self.allocated.lock().unwrap();
        let used: usize = allocated.values().map(Layout::size).sum();
        if used + bytes > self.emulation.capacity {
            return Err(Error::new(Status::OutOfMemory, "the emulated GPU is full"));
        }
        let layout = Layout::from_size_align(bytes.max(1), 256).unwrap();
        // SAFETY: the layout has a byte.
        let address = unsafe {
            let memory = alloc(layout);
            assert!(!memory.is_null());
            memory as u64
        };
        allocated.insert(address, layout);
        self.lent_again(address, layout.size());
        Ok(address)
    }

    /// NaN, in f32, f64 and bf16; or 1, nearly, in bf16, lest what is left out show at once.
    fn lent_again(&self, address: u64, bytes: usize) {
        let byte = if self.emulation.without.is_some() { 0x3f } else { 0xff };
        // SAFETY: it was allocated here, with as many bytes.
        unsafe { (address as *mut u8).write_bytes(byte, bytes) };
    }

    unsafe fn free(&self, address: u64) {
        let layout = self.allocated.lock().unwrap().remove(&address).expect("allocated here");
        // SAFETY: it was allocated so.
        unsafe { dealloc(address as *mut u8, layout) };
    }

    unsafe fn write(&self, to: u64, from: &[u8]) -> Result<()> {
        self.done_at_once()?;
        // SAFETY: the caller says so.
        unsafe { (to as *mut u8).copy_from(from.as_ptr(), from.len()) };
        Ok(())
    }

    unsafe fn read(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.done_at_once()?;
        // SAFETY: the caller says so.
        unsafe { to.as_mut_ptr().copy_from(from as *const u8, to.len()) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.done_at_once()?;
        // SAFETY: the caller says so.
        unsafe { (to as *mut u8).copy_from(from as *const u8, bytes) };
        Ok(())
    }

    unsafe fn zero(&self, to: u64, bytes: usize) -> Result<()> {
        self.done_at_once()?;
        // SAFETY: the caller says so.
        unsafe { (to as *mut u8).write_bytes(0, bytes) };
        Ok(())
    }

    unsafe fn launch(
        &self,
        kernel: &str,
        grid: Grid,
        params: *const c_void,
        bytes: usize,
    ) -> Result<()> {
        // A real GPU is opened with those alone.
        assert!(names::all().any(|name| name == kernel), "{kernel} is not in names.rs");
        if self.is_without(kernel) {
            return Ok(());
        }
        let name = CString::new(kernel).unwrap();
        if self.is_recorded(|| {
            let mut copy = vec![0u64; bytes.div_ceil(8)];
            // SAFETY: the caller says that as many bytes are there.
            unsafe { copy.as_mut_ptr().cast::<u8>().copy_from(params.cast(), bytes) };
            Step::Launch { kernel: name.clone(), grid, params: copy, bytes }
        }) {
            return Ok(());
        }
        let blocks = grid.blocks.map(|n| n as c_uint);
        // SAFETY: the caller says that the parameters are the kernel's.
        let failure = unsafe {
            (self.launch)(
                name.as_ptr(),
                blocks.as_ptr(),
                grid.threads,
                grid.shared,
                params,
                bytes,
                self.emulation.ascending,
            )
        };
        if failure.is_null() {
            return Ok(());
        }
        // SAFETY: it is a literal.
        let failure = unsafe { CStr::from_ptr(failure) }.to_string_lossy();
        Err(Error::internal(format!("kernel {kernel}: {failure}")))
    }

    unsafe fn multiply(&self, p: Product) -> Result<()> {
        if self.is_without("product") {
            return Ok(());
        }
        if self.is_recorded(|| Step::Multiply(p)) {
            return Ok(());
        }
        let number = |address: u64, i: usize| -> f32 {
            // SAFETY: the caller says that the matrices lie there.
            unsafe {
                match p.element {
                    Element::F32 => *(address as *const f32).add(i),
                    Element::Bf16 => (*(address as *const bf16).add(i)).to_f32(),
                }
            }
        };
        for row in 0..p.rows {
            for column in 0..p.outputs {
                let terms = (0..p.inputs).map(|i| {
                    number(p.x, row * p.inputs + i) * number(p.weight, column * p.inputs + i)
                });
                let (sum, at) = (terms.sum::<f32>(), row * p.outputs + column);
                // SAFETY: as above.
                unsafe {
                    match p.element {
                        Element::F32 => *(p.y as *mut f32).add(at) = sum,
                        Element::Bf16 => *(p.y as *mut bf16).add(at) = bf16::from_f32(sum),
                    }
                }
            }
        }
        Ok(())
    }

    fn begin_capture(&self) -> Result<()> {
        if !self.emulation.has_graphs {
            return Err(Error::internal("a GPU without graphs"));
        }
        self.done_at_once()?;
        *self.recording.lock().unwrap() = Some(vec![]);
        Ok(())
    }

    fn end_capture(&self) -> Result<Graph> {
        let steps = self.recording.lock().unwrap().take();
        let steps = steps.ok_or_else(|| Error::internal("nothing is recorded"))?;
        let mut graphs = self.graphs.lock().unwrap();
        let graph = Graph((0..).find(|&number| !graphs.contains_key(&Graph(number))).unwrap());
        graphs.insert(graph, steps);
        Ok(graph)
    }

    unsafe fn replay(&self, graph: Graph) -> Result<()> {
        let steps = self.graphs.lock().unwrap()[&graph].clone();
        for step in steps {
            // SAFETY: the caller says that what was recorded may be done.
            unsafe {
                match step {
                    Step::Launch { kernel, grid, params, bytes } => {
                        self.launch(kernel.to_str().unwrap(), grid, params.as_ptr().cast(), bytes)?;
                    }
                    Step::Multiply(product) => self.multiply(product)?,
                }
            }
        }
        Ok(())
    }

    unsafe fn free_graph(&self, graph: Graph) {
        self.graphs.lock().unwrap().remove(&graph).expect("recorded here");
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        assert!(self.graphs.lock().unwrap().is_empty() || std::thread::panicking());
        let left = self.allocated.lock().unwrap().len();
        assert!(left == 0 || std::thread::panicking(), "{left} allocations are not given back");
    }
}
