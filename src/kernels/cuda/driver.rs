//! A GPU as it is, behind [`Driver`]: the CUDA driver's and cuBLAS's own functions, and the kernels
//! that the build has compiled. It has run against a driver of the tests' own making
//! (`tests/cuda/emulated.cpp`), and on no GPU.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::cuda_backend::cudarc::cublas::sys as blas;
use candle_core::cuda_backend::cudarc::driver::sys::{self as cu, CUresult};

use super::gpu::{Driver, Element, Gpu, Graph, Grid, Product, Sizes};
use super::names;
use crate::error::{Error, Result, Status};
use crate::sys::cuda::{failed, refused, require};

/// Memory that pages are cut from.
const SLAB: usize = 16 << 20;
/// Memory that cuBLAS works in: what it asks for on Hopper.
const WORKSPACE: usize = 32 << 20;
/// Memory that what is written passes through.
const STAGING: usize = 8 << 20;

/// Bytes that begin at a multiple of 16: the driver reads numbers of 8 in them.
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

/// A compiled `.cu` file: its name without the ending, and code for every GPU that is served.
type Image = (&'static str, &'static Aligned<[u8]>);

const IMAGES: &[Image] = include!(concat!(env!("OUT_DIR"), "/cuda/images.rs"));

/// GPU `ordinal`, which is to compute with numbers of that kind.
///
/// # Errors
/// `Unsupported`, with what is missing; `OutOfMemory`.
pub(crate) fn open(ordinal: usize, element: Element) -> Result<Gpu> {
    let real = Real::open(ordinal)?;
    let processors = real.processors;
    Ok(Gpu::new(Box::new(real), element, processors, Sizes { class, slab: SLAB }))
}

/// Four sizes to a doubling; above 8 MiB steps of 2 MiB, which is what the driver itself hands out.
fn class(bytes: usize) -> usize {
    let quarter = bytes.next_power_of_two() / 8;
    bytes.max(1).next_multiple_of(quarter.clamp(256, 2 << 20))
}

/// See the module.
struct Real {
    device: cu::CUdevice,
    context: cu::CUcontext,
    stream: cu::CUstream,
    modules: Vec<cu::CUmodule>,
    functions: HashMap<&'static str, cu::CUfunction>,
    processors: usize,
    blas: blas::cublasHandle_t,
    workspace: u64,
    staging: Mutex<Staging>,
}

/// Memory of the host that the GPU copies from. What is written lies here until it has been copied:
/// the driver promises of no other memory when it may change again.
struct Staging {
    memory: *mut u8,
    /// Bytes that may still be about to be copied.
    used: usize,
}

// SAFETY: the driver's handles may be used on any thread that has the context, which every call
// gives itself; cuBLAS's is not changed after it is made; the staging memory has a lock.
unsafe impl Send for Real {}
// SAFETY: as above.
unsafe impl Sync for Real {}

/// The context is this thread's current one; then the one that was before is again.
struct Bound;

impl Drop for Bound {
    fn drop(&mut self) {
        // SAFETY: the context that was pushed is popped, into a pointer to be written.
        let _ = unsafe { cu::cuCtxPopCurrent_v2(&mut null_mut()) };
    }
}

impl Real {
    fn open(ordinal: usize) -> Result<Self> {
        require(ordinal)?;
        Self::opened(ordinal).map_err(|e| match e.status() {
            Status::OutOfMemory => e,
            _ => refused(ordinal, e.message()),
        })
    }

    fn opened(ordinal: usize) -> Result<Self> {
        let (mut device, mut context) = (0, null_mut());
        // SAFETY: the driver has been initialised, and is given places to write to.
        unsafe {
            done("cuDeviceGet", cu::cuDeviceGet(&mut device, ordinal as c_int))?;
            let retained = cu::cuDevicePrimaryCtxRetain(&mut context, device);
            done("cuDevicePrimaryCtxRetain", retained)?;
        }
        // What has been made by the time that a step fails is given back when this is dropped.
        let mut real = Self {
            device,
            context,
            stream: null_mut(),
            modules: vec![],
            functions: HashMap::new(),
            processors: 0,
            blas: null_mut(),
            workspace: 0,
            staging: Mutex::new(Staging { memory: null_mut(), used: 0 }),
        };
        let bound = real.bound()?;
        let count = cu::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        real.processors = real.attribute(count)?.max(1) as usize;
        let alone = cu::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: a place to write to.
        done("cuStreamCreate", unsafe { cu::cuStreamCreate(&mut real.stream, alone) })?;
        real.load_kernels()?;
        real.open_blas()?;
        let mut memory = null_mut();
        // SAFETY: as above.
        done("cuMemHostAlloc", unsafe { cu::cuMemHostAlloc(&mut memory, STAGING, 0) })?;
        real.staging().memory = memory.cast();
        drop(bound);
        Ok(real)
    }

    fn attribute(&self, attribute: cu::CUdevice_attribute) -> Result<c_int> {
        let mut value = 0;
        // SAFETY: a place to write to, and the driver's own device.
        let asked = unsafe { cu::cuDeviceGetAttribute(&mut value, attribute, self.device) };
        done("cuDeviceGetAttribute", asked)?;
        Ok(value)
    }

    /// All kernels, so that none is looked for, or compiled, while texts wait.
    fn load_kernels(&mut self) -> Result<()> {
        for (file, image) in IMAGES {
            let mut module = null_mut();
            // SAFETY: the image is whole, as the compiler wrote it.
            let loaded = unsafe { cu::cuModuleLoadData(&mut module, image.0.as_ptr().cast()) };
            done("cuModuleLoadData", loaded).map_err(|e| of(&format!("{file}.cu"), e))?;
            self.modules.push(module);
        }
        let most = cu::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let shared = self.attribute(most)?;
        let mut missing = Vec::new();
        for name in names::all() {
            let Some(function) = self.function(name)? else {
                missing.push(name);
                continue;
            };
            // Without this a block may have 48 KB.
            let attribute =
                cu::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a module that is loaded.
            let set = unsafe { cu::cuFuncSetAttribute(function, attribute, shared) };
            done("cuFuncSetAttribute", set).map_err(|e| of(&format!("kernel {name}"), e))?;
            self.functions.insert(name, function);
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::internal(format!("the build lacks kernels: {}", missing.join(", "))))
    }

    /// The kernel of this name, if one of the modules has it.
    fn function(&self, name: &str) -> Result<Option<cu::CUfunction>> {
        let c_name = CString::new(name).map_err(|_| Error::internal("a kernel's name"))?;
        for &module in &self.modules {
            let mut function = null_mut();
            // SAFETY: a place to write to, a module that is loaded and a C string.
            match unsafe { cu::cuModuleGetFunction(&mut function, module, c_name.as_ptr()) } {
                CUresult::CUDA_ERROR_NOT_FOUND => {}
                code => {
                    done("cuModuleGetFunction", code).map_err(|e| of(name, e))?;
                    return Ok(Some(function));
                }
            }
        }
        Ok(None)
    }

    /// cuBLAS on the stream. With memory of its own it allocates none later, which a capture of the
    /// stream forbids.
    fn open_blas(&mut self) -> Result<()> {
        // To bf16 is rounded once, at the end.
        let math = blas::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        // SAFETY: a place to write to; then the handle, stream and memory that have been made. To
        // set the stream takes a workspace away, so it comes first.
        unsafe {
            multiplied("cublasCreate", blas::cublasCreate_v2(&mut self.blas))?;
            multiplied("cublasSetStream", blas::cublasSetStream_v2(self.blas, self.stream.cast()))?;
            self.workspace = self.allocate(WORKSPACE)?;
            let workspace = self.workspace as *mut c_void;
            let set = blas::cublasSetWorkspace_v2(self.blas, workspace, WORKSPACE);
            multiplied("cublasSetWorkspace", set)?;
            multiplied("cublasSetMathMode", blas::cublasSetMathMode(self.blas, math))
        }
    }

    fn bound(&self) -> Result<Bound> {
        // SAFETY: the context is retained until this is dropped.
        done("cuCtxPushCurrent", unsafe { cu::cuCtxPushCurrent_v2(self.context) })?;
        Ok(Bound)
    }

    fn staging(&self) -> MutexGuard<'_, Staging> {
        // Whoever panicked left numbers that say too much is in use, at the worst.
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for all that was asked for, which includes every copy out of `staging`.
    fn wait(&self, staging: &mut Staging) -> Result<()> {
        // SAFETY: the stream is this GPU's own.
        done("cuStreamSynchronize", unsafe { cu::cuStreamSynchronize(self.stream) })?;
        staging.used = 0;
        Ok(())
    }

    fn is_capturing(&self) -> Result<bool> {
        let mut status = cu::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: a place to write to.
        let asked = unsafe { cu::cuStreamIsCapturing(self.stream, &mut status) };
        done("cuStreamIsCapturing", asked)?;
        Ok(status != cu::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }
}

impl Driver for Real {
    fn allocate(&self, bytes: usize) -> Result<u64> {
        let _bound = self.bound()?;
        let mut address = 0;
        // SAFETY: a place to write to. Every address is a multiple of 256.
        done("cuMemAlloc", unsafe { cu::cuMemAlloc_v2(&mut address, bytes) })?;
        #[cfg(test)]
        self.lent_again(address, bytes);
        Ok(address)
    }

    /// In tests NaN, in f32, f64 and bf16, as on the emulator: what reads memory that nobody has
    /// written, or writes what it should not, shows.
    #[cfg(test)]
    fn lent_again(&self, address: u64, bytes: usize) {
        let _bound = self.bound().unwrap();
        // SAFETY: it was allocated here, with as many bytes.
        let filled = unsafe { cu::cuMemsetD8Async(address, 0xff, bytes, self.stream) };
        done("cuMemsetD8Async", filled).unwrap();
    }

    unsafe fn free(&self, address: u64) {
        if let Ok(_bound) = self.bound() {
            // SAFETY: the caller says so. It waits for what still uses the memory; a failure is
            // that of earlier work, which the next call is answered with too.
            let _ = unsafe { cu::cuMemFree_v2(address) };
        }
    }

    unsafe fn write(&self, to: u64, from: &[u8]) -> Result<()> {
        let _bound = self.bound()?;
        if self.is_capturing()? {
            // The graph would copy whatever lies there when it is replayed.
            return Err(Error::internal("a write to the GPU inside a graph"));
        }
        let mut staging = self.staging();
        for (i, piece) in from.chunks(STAGING).enumerate() {
            if staging.used + piece.len() > STAGING {
                self.wait(&mut staging)?;
            }
            // SAFETY: the piece has room, where nothing is about to be copied from; the caller says
            // that the GPU's memory is there.
            let copied = unsafe {
                let room = staging.memory.add(staging.used);
                room.copy_from_nonoverlapping(piece.as_ptr(), piece.len());
                let to = to + (i * STAGING) as u64;
                cu::cuMemcpyHtoDAsync_v2(to, room.cast(), piece.len(), self.stream)
            };
            done("cuMemcpyHtoDAsync", copied)?;
            staging.used += piece.len().next_multiple_of(16);
        }
        Ok(())
    }

    unsafe fn read(&self, from: u64, to: &mut [u8]) -> Result<()> {
        let _bound = self.bound()?;
        let mut staging = self.staging();
        // SAFETY: the caller says so; `to` is not used before the wait is over.
        let copied = unsafe {
            cu::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), self.stream)
        };
        done("cuMemcpyDtoHAsync", copied)?;
        self.wait(&mut staging)
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        let _bound = self.bound()?;
        // SAFETY: the caller says so.
        let copied = unsafe { cu::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream) };
        done("cuMemcpyDtoDAsync", copied)
    }

    unsafe fn zero(&self, to: u64, bytes: usize) -> Result<()> {
        let _bound = self.bound()?;
        // SAFETY: the caller says so.
        done("cuMemsetD8Async", unsafe { cu::cuMemsetD8Async(to, 0, bytes, self.stream) })
    }

    unsafe fn launch(
        &self,
        kernel: &str,
        grid: Grid,
        params: *const c_void,
        _bytes: usize,
    ) -> Result<()> {
        let function = self.functions.get(kernel);
        let &function = function.ok_or_else(|| Error::internal(format!("no kernel {kernel}")))?;
        // The driver refuses what is too large.
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let [x, y, z] = grid.blocks.map(number);
        let _bound = self.bound()?;
        // SAFETY: the one parameter of every kernel is a struct, which the caller says this is; the
        // driver copies it at once.
        let launched = unsafe {
            let mut params = [params.cast_mut()];
            let (threads, shared) = (grid.threads, number(grid.shared));
            let (params, extra) = (params.as_mut_ptr(), null_mut());
            cu::cuLaunchKernel(function, x, y, z, threads, 1, 1, shared, self.stream, params, extra)
        };
        done("cuLaunchKernel", launched).map_err(|e| of(&format!("kernel {kernel}"), e))
    }

    unsafe fn multiply(&self, p: Product) -> Result<()> {
        // Rows of `x` and `y` are cuBLAS's columns: with `y^T = W x^T`, `W` is what it transposes.
        let number = |n: usize| {
            c_int::try_from(n).map_err(|_| Error::internal(format!("a matrix of {n} rows")))
        };
        let (rows, inputs, outputs) = (number(p.rows)?, number(p.inputs)?, number(p.outputs)?);
        let kind = match p.element {
            Element::F32 => blas::cudaDataType::CUDA_R_32F,
            Element::Bf16 => blas::cudaDataType::CUDA_R_16BF,
        };
        // f32 is multiplied as f32, and bf16's products are summed in f32.
        let compute = blas::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let (transposed, plain) =
            (blas::cublasOperation_t::CUBLAS_OP_T, blas::cublasOperation_t::CUBLAS_OP_N);
        let (one, zero) = (1f32, 0f32);
        let _bound = self.bound()?;
        // SAFETY: the caller says that the matrices lie there; the factors are read at once.
        let done = unsafe {
            blas::cublasGemmEx(
                self.blas,
                transposed,
                plain,
                outputs,
                rows,
                inputs,
                (&raw const one).cast(),
                p.weight as *const c_void,
                kind,
                inputs,
                p.x as *const c_void,
                kind,
                inputs,
                (&raw const zero).cast(),
                p.y as *mut c_void,
                kind,
                outputs,
                compute,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        multiplied("cublasGemmEx", done)
    }

    fn begin_capture(&self) -> Result<()> {
        let _bound = self.bound()?;
        // Other guards' threads go on as they please.
        let mode = cu::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is this GPU's own.
        let begun = unsafe { cu::cuStreamBeginCapture_v2(self.stream, mode) };
        done("cuStreamBeginCapture", begun)
    }

    fn end_capture(&self) -> Result<Graph> {
        let _bound = self.bound()?;
        let (mut graph, mut ready) = (null_mut(), null_mut());
        // SAFETY: places to write to, and the graph that is made here.
        unsafe {
            let ended = cu::cuStreamEndCapture(self.stream, &mut graph);
            done("cuStreamEndCapture", ended)?;
            let made = cu::cuGraphInstantiateWithFlags(&mut ready, graph, 0);
            let _ = cu::cuGraphDestroy(graph);
            done("cuGraphInstantiate", made)?;
        }
        Ok(Graph(ready as u64))
    }

    unsafe fn replay(&self, graph: Graph) -> Result<()> {
        let _bound = self.bound()?;
        // SAFETY: it was recorded here and has not been freed; the caller says that its memory lives.
        let launched = unsafe { cu::cuGraphLaunch(graph.0 as cu::CUgraphExec, self.stream) };
        done("cuGraphLaunch", launched)
    }

    unsafe fn free_graph(&self, graph: Graph) {
        if let Ok(_bound) = self.bound() {
            // SAFETY: the caller says so. The driver keeps it while it runs.
            let _ = unsafe { cu::cuGraphExecDestroy(graph.0 as cu::CUgraphExec) };
        }
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        if let Ok(_bound) = self.bound() {
            // SAFETY: each of these was made here, is given back once, and is not used any more
            // when the stream is done. After a failure that stays, the driver refuses all of it.
            unsafe {
                let _ = cu::cuStreamSynchronize(self.stream);
                if !self.blas.is_null() {
                    let _ = blas::cublasDestroy_v2(self.blas);
                }
                let staging = self.staging().memory;
                if !staging.is_null() {
                    let _ = cu::cuMemFreeHost(staging.cast());
                }
                if self.workspace != 0 {
                    let _ = cu::cuMemFree_v2(self.workspace);
                }
                for &module in &self.modules {
                    let _ = cu::cuModuleUnload(module);
                }
                if !self.stream.is_null() {
                    let _ = cu::cuStreamDestroy_v2(self.stream);
                }
            }
        }
        // SAFETY: it was retained once.
        let _ = unsafe { cu::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// The driver's answer.
fn done(function: &str, code: CUresult) -> Result<()> {
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        code => {
            let words = failed(function, code as u32);
            Err(match code {
                CUresult::CUDA_ERROR_OUT_OF_MEMORY => full(&words),
                _ => Error::internal(words),
            })
        }
    }
}

/// cuBLAS's answer.
fn multiplied(function: &str, code: blas::cublasStatus_t) -> Result<()> {
    use blas::cublasStatus_t::{CUBLAS_STATUS_ALLOC_FAILED, CUBLAS_STATUS_SUCCESS};
    let words = || format!("cuBLAS's {function} failed ({code:?}, code {})", code as u32);
    match code {
        CUBLAS_STATUS_SUCCESS => Ok(()),
        CUBLAS_STATUS_ALLOC_FAILED => Err(full(&words())),
        _ => Err(Error::internal(words())),
    }
}

fn full(words: &str) -> Error {
    Error::new(Status::OutOfMemory, format!("the device's memory is full: {words}"))
}

/// `error`, with what it happened to.
fn of(what: &str, error: Error) -> Error {
    Error::new(error.status(), format!("{what}: {}", error.message()))
}

/// What runs on the machine's GPU, or says that there is none.
#[cfg(test)]
pub(super) mod real_gpu {
    use std::io::Write;
    use std::sync::{Arc, Once};

    use super::*;
    use crate::kernels::cuda::params;

    /// GPU 0, or nothing where there is none. With `SIREN_REQUIRE_GPU` in the environment that is a
    /// failure.
    fn there_is<T>(opened: Result<T>) -> Option<T> {
        match opened {
            Ok(gpu) => Some(gpu),
            Err(error) if std::env::var_os("SIREN_REQUIRE_GPU").is_some() => panic!("{error}"),
            Err(error) => {
                static SAID: Once = Once::new();
                // Not `println`, which the harness keeps to itself.
                let say = || writeln!(std::io::stderr(), "SKIPPED: no GPU: {error}").unwrap();
                SAID.call_once(say);
                None
            }
        }
    }

    pub(in super::super) fn gpus(element: Element) -> Vec<Gpu> {
        there_is(open(0, element)).into_iter().collect()
    }

    /// Memory that is freed with it.
    struct Held {
        real: Arc<Real>,
        address: u64,
        bytes: usize,
    }

    impl Held {
        fn new(real: &Arc<Real>, bytes: usize) -> Self {
            Self { real: real.clone(), address: real.allocate(bytes).unwrap(), bytes }
        }

        fn holding(real: &Arc<Real>, values: &[f32]) -> Self {
            let held = Self::new(real, size_of_val(values));
            held.write(0, bytemuck::cast_slice(values)).unwrap();
            held
        }

        fn write(&self, at: usize, bytes: &[u8]) -> Result<()> {
            assert!(at + bytes.len() <= self.bytes);
            // SAFETY: it has as many bytes.
            unsafe { self.real.write(self.address + at as u64, bytes) }
        }

        fn read(&self) -> Result<Vec<u8>> {
            let mut bytes = vec![0; self.bytes];
            // SAFETY: it has as many bytes.
            unsafe { self.real.read(self.address, &mut bytes)? };
            Ok(bytes)
        }

        fn numbers(&self) -> Vec<f32> {
            self.read().unwrap().chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            // SAFETY: it was allocated, and nobody else has it.
            unsafe { self.real.free(self.address) };
        }
    }

    /// Adds `y` to `x`, a row.
    fn add(x: &Held, y: &Held, threads: u32) -> Result<()> {
        let width = (x.bytes / 4) as i32;
        let params = params::Add { x: x.address, y: y.address, y_rows: 1, rows: 1, width };
        let grid = Grid { blocks: [1, 1, 1], threads, shared: 0 };
        let (params, bytes) = ((&raw const params).cast(), size_of::<params::Add>());
        // SAFETY: both have as many numbers, and the parameters are the kernel's.
        unsafe { x.real.launch("add_f32", grid, params, bytes) }
    }

    fn real() -> Option<Arc<Real>> {
        there_is(Real::open(0)).map(Arc::new)
    }

    #[test]
    fn what_is_recorded_is_done_at_each_replay() {
        let Some(real) = real() else { return };
        const WIDTH: usize = 64;
        let numbers = |scale: f32| -> Vec<f32> { (0..WIDTH).map(|i| i as f32 * scale).collect() };
        let x = Held::holding(&real, &numbers(1.0));
        // Each number twice, but for the first, which is zero.
        let diagonal = |i: usize| if i.is_multiple_of(WIDTH + 1) { 2.0 } else { 0.0 };
        let weight: Vec<f32> = (0..WIDTH * WIDTH).map(diagonal).collect();
        let weight = Held::holding(&real, &weight);
        let [y, copy, blank] = [(); 3].map(|()| Held::holding(&real, &[7.0; WIDTH]));
        let product = Product {
            x: x.address,
            weight: weight.address,
            y: y.address,
            rows: 1,
            inputs: WIDTH,
            outputs: WIDTH,
            element: Element::F32,
        };
        let work = || {
            // SAFETY: everything has as many numbers.
            unsafe {
                real.zero(blank.address, blank.bytes).unwrap();
                real.multiply(product).unwrap();
                add(&y, &x, 64).unwrap();
                real.copy(y.address, copy.address, copy.bytes).unwrap();
            }
        };
        work();
        assert_eq!((copy.numbers(), blank.numbers()), (numbers(3.0), vec![0.0; WIDTH]));

        blank.write(0, bytemuck::bytes_of(&5f32)).unwrap();
        x.write(0, bytemuck::cast_slice(&numbers(10.0))).unwrap();
        real.begin_capture().unwrap();
        work();
        let error = x.write(0, &[0; 4]).unwrap_err();
        assert_eq!(error.message(), "a write to the GPU inside a graph");
        let graph = real.end_capture().unwrap();
        assert_eq!(
            (copy.numbers(), blank.numbers()[0]),
            (numbers(3.0), 5.0),
            "nothing is done yet"
        );
        for scale in [10.0, 100.0] {
            x.write(0, bytemuck::cast_slice(&numbers(scale))).unwrap();
            // SAFETY: the graph is this GPU's, and all that it uses lives.
            unsafe { real.replay(graph).unwrap() };
            assert_eq!(copy.numbers(), numbers(3.0 * scale));
            assert_eq!(blank.numbers(), [0.0; WIDTH]);
        }
        // SAFETY: as above.
        unsafe { real.free_graph(graph) };

        // What is refused spoils what is recorded, and no more than that.
        let read: fn(&Held) -> Result<()> = |held| held.read().map(|_| ());
        let allocate: fn(&Held) -> Result<()> = |held| held.real.allocate(256).map(|_| ());
        for refused in [read, allocate] {
            real.begin_capture().unwrap();
            let error = refused(&x).unwrap_err();
            assert_eq!(error.status(), Status::Internal, "{error}");
            assert_eq!(real.end_capture().map(|_| ()).unwrap_err().status(), Status::Internal);
            work();
            assert_eq!(copy.numbers(), numbers(300.0));
        }
    }

    #[test]
    fn what_is_written_is_there() {
        let Some(real) = real() else { return };
        let bytes: Vec<u8> = (0..2 * STAGING + 12345).map(|i| (i % 251) as u8).collect();
        let held = Held::new(&real, bytes.len());
        held.write(0, &bytes).unwrap();
        assert!(held.read().unwrap() == bytes);
        // More than the staging memory holds, out of one place whose bytes change.
        let mut piece = [0u8; 5000];
        for i in 0..held.bytes / piece.len() {
            piece.fill(i as u8);
            held.write(i * piece.len(), &piece).unwrap();
        }
        for (i, read) in held.read().unwrap().chunks_exact(piece.len()).enumerate() {
            assert!(read.iter().all(|&byte| byte == i as u8), "piece {i}");
        }
    }

    #[test]
    fn a_launch_that_is_refused_names_its_kernel_and_is_over() {
        let Some(real) = real() else { return };
        let [x, y] = [1.0, 2.0].map(|n| Held::holding(&real, &[n; 8]));
        let error = add(&x, &y, 2048).unwrap_err();
        assert_eq!(error.status(), Status::Internal);
        let words = "kernel add_f32: the driver's cuLaunchKernel failed (CUDA_ERROR_INVALID_VALUE";
        assert!(error.message().starts_with(words), "{error}");
        let grid = Grid { blocks: [1, 1, 1], threads: 32, shared: 0 };
        // SAFETY: nothing is launched.
        let error = unsafe { real.launch("none_f32", grid, null_mut(), 0) }.unwrap_err();
        assert_eq!(error.message(), "no kernel none_f32");
        add(&x, &y, 32).unwrap();
        assert_eq!(x.numbers(), [3.0; 8]);
    }

    #[test]
    fn more_than_there_is_is_out_of_memory() {
        let Some(real) = real() else { return };
        let error = real.allocate(1 << 50).unwrap_err();
        assert_eq!(error.status(), Status::OutOfMemory);
        assert!(error.message().contains("CUDA_ERROR_OUT_OF_MEMORY"), "{error}");
        let held = Held::holding(&real, &[4.0; 8]);
        assert_eq!((held.numbers(), held.address % 256), (vec![4.0; 8], 0));
    }

    #[test]
    fn any_thread_may_use_it() {
        let Some(real) = real() else { return };
        let x = Held::holding(&real, &[1.0; 8]);
        for _ in 0..3 {
            std::thread::scope(|threads| {
                threads.spawn(|| add(&x, &Held::holding(&real, &[2.0; 8]), 32).unwrap());
            });
        }
        assert_eq!(x.numbers(), [7.0; 8]);
    }

    #[test]
    fn sizes_are_few_and_hold_what_is_asked_for() {
        for (bytes, expected) in [
            (0, 256),
            (1, 256),
            (257, 512),
            (4097, 5120),
            (5121, 6144),
            (8192, 8192),
            (20 << 20, 20 << 20),
            ((100 << 20) + 1, 102 << 20),
        ] {
            assert_eq!(class(bytes), expected, "{bytes}");
        }
    }
}
