/* A CUDA driver and a cuBLAS whose GPU is the CPU, for tests of `src/kernels/cuda/driver.rs`: kernels
 * run on the emulator. A stream's work is done as late as a driver may, when somebody waits for it.
 * What CUDA forbids is answered with its error, and what is left at the end is fatal. One file under
 * all the libraries' names. */
#include "../../src/kernels/cuda/emulate/emulate.cpp"

#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <thread>

extern "C" {
#include "driver.c"
}

namespace {

enum Code {
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
};
constexpr int BLAS_INVALID_VALUE = 7, BLAS_EXECUTION_FAILED = 13;

using Task = std::function<int()>;

struct Stream {
    std::vector<Task> work;
    bool is_capturing = false, is_invalid = false;
    std::thread::id capturer;
    std::vector<Task> captured;
};

struct Module {
    const char *image;
    size_t bytes;
};

struct Function {
    const emulate::Kernel *kernel;
    unsigned most_shared = 48 * 1024;
};

struct Blas {
    Stream *stream = nullptr;
    void *workspace = nullptr;
    int math = 0;
};

struct Graph {
    std::vector<Task> work;
};

std::recursive_mutex lock;
int retained;
// What has gone wrong for good.
int failure;
std::map<uint64_t, size_t> memory;
std::set<void *> pinned, streams, modules, handles, graphs;
std::vector<Function *> functions;
thread_local std::vector<void *> current;
char context;

// Work of a stream, which a capture records instead.
int enqueue(Stream *stream, Task work) {
    if (stream->is_capturing)
        stream->captured.push_back(work);
    else
        stream->work.push_back(work);
    return 0;
}

int finish(Stream *stream) {
    for (const Task &work : stream->work)
        if (!failure) failure = work();
    stream->work.clear();
    return failure;
}

int finish_all() {
    for (void *stream : streams) finish(static_cast<Stream *>(stream));
    return failure;
}

// Whether all of it lies in one piece of memory that is allocated.
bool is_there(uint64_t at, size_t bytes) {
    auto after = memory.upper_bound(at);
    if (after == memory.begin()) return false;
    auto piece = std::prev(after);
    return at + bytes <= piece->first + piece->second;
}

// Whether this thread captures a stream, which a call that allocates spoils.
bool spoils_a_capture() {
    bool does = false;
    for (void *each : streams) {
        Stream *stream = static_cast<Stream *>(each);
        if (stream->is_capturing && stream->capturer == std::this_thread::get_id())
            does = stream->is_invalid = true;
    }
    return does;
}

float number_at(const void *matrix, size_t i, bool is_f32) {
    return is_f32 ? static_cast<const float *>(matrix)[i]
                  : emulate::widen(static_cast<const __nv_bfloat16 *>(matrix)[i].bits);
}

} // namespace

// Every function needs the context to be this thread's current one.
#define ENTER                                                                                      \
    std::lock_guard<std::recursive_mutex> guard(lock);                                             \
    if (failure) return failure;                                                                   \
    if (current.empty() || !retained) return INVALID_CONTEXT

extern "C" {

int cuDevicePrimaryCtxRetain(void **out, int) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    retained++;
    *out = &context;
    return 0;
}

int cuDevicePrimaryCtxRelease_v2(int) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    const size_t left = memory.size() + pinned.size() + streams.size() + modules.size() +
                        handles.size() + graphs.size();
    if (--retained == 0 && left && !failure) {
        fprintf(stderr, "%zu things are not given back to the driver\n", left);
        abort();
    }
    return 0;
}

int cuCtxPushCurrent_v2(void *pushed) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (pushed != &context || !retained) return INVALID_CONTEXT;
    current.push_back(pushed);
    return 0;
}

int cuCtxPopCurrent_v2(void **out) {
    if (current.empty()) return INVALID_CONTEXT;
    *out = current.back();
    current.pop_back();
    return 0;
}

int cuStreamCreate(void **out, unsigned) {
    ENTER;
    *out = *streams.insert(new Stream).first;
    return 0;
}

int cuStreamDestroy_v2(void *stream) {
    ENTER;
    finish(static_cast<Stream *>(stream));
    if (!streams.erase(stream)) return INVALID_HANDLE;
    delete static_cast<Stream *>(stream);
    return 0;
}

int cuStreamSynchronize(void *stream) {
    ENTER;
    Stream *own = static_cast<Stream *>(stream);
    if (own->is_capturing) {
        own->is_invalid = true;
        return CAPTURE_UNSUPPORTED;
    }
    return finish(own);
}

int cuStreamIsCapturing(void *stream, int *status) {
    ENTER;
    Stream *own = static_cast<Stream *>(stream);
    *status = own->is_capturing ? 1 + own->is_invalid : 0;
    return 0;
}

int cuStreamBeginCapture_v2(void *stream, int) {
    ENTER;
    Stream *own = static_cast<Stream *>(stream);
    if (own->is_capturing) return INVALID_VALUE;
    own->is_capturing = true;
    own->capturer = std::this_thread::get_id();
    return 0;
}

int cuStreamEndCapture(void *stream, void **out) {
    ENTER;
    Stream *own = static_cast<Stream *>(stream);
    const bool is_invalid = own->is_invalid || !own->is_capturing;
    Graph *graph = new Graph{std::move(own->captured)};
    own->captured.clear();
    own->is_capturing = own->is_invalid = false;
    if (is_invalid) {
        delete graph;
        return CAPTURE_INVALIDATED;
    }
    *out = *graphs.insert(graph).first;
    return 0;
}

int cuGraphInstantiateWithFlags(void **out, void *graph, unsigned long long) {
    ENTER;
    *out = *graphs.insert(new Graph(*static_cast<Graph *>(graph))).first;
    return 0;
}

static int free_graph(void *graph) {
    ENTER;
    if (!graphs.erase(graph)) return INVALID_HANDLE;
    delete static_cast<Graph *>(graph);
    return 0;
}

int cuGraphDestroy(void *graph) { return free_graph(graph); }
int cuGraphExecDestroy(void *graph) { return free_graph(graph); }

int cuGraphLaunch(void *graph, void *stream) {
    ENTER;
    if (!graphs.count(graph)) return INVALID_HANDLE;
    for (const Task &work : static_cast<Graph *>(graph)->work)
        enqueue(static_cast<Stream *>(stream), work);
    return 0;
}

int cuMemAlloc_v2(uint64_t *out, size_t bytes) {
    ENTER;
    if (spoils_a_capture()) return CAPTURE_UNSUPPORTED;
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > size_t(1) << 32) return OUT_OF_MEMORY;
    void *piece = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!piece) return OUT_OF_MEMORY;
    memset(piece, 0xff, bytes);
    *out = reinterpret_cast<uint64_t>(piece);
    memory[*out] = bytes;
    return 0;
}

int cuMemFree_v2(uint64_t address) {
    ENTER;
    if (finish_all()) return failure;
    if (!memory.erase(address)) return INVALID_VALUE;
    free(reinterpret_cast<void *>(address));
    return 0;
}

int cuMemHostAlloc(void **out, size_t bytes, unsigned) {
    ENTER;
    *out = *pinned.insert(aligned_alloc(4096, bytes)).first;
    return 0;
}

int cuMemFreeHost(void *piece) {
    ENTER;
    if (finish_all()) return failure;
    if (!pinned.erase(piece)) return INVALID_VALUE;
    free(piece);
    return 0;
}

static int copy(void *to, const void *from, size_t bytes, void *stream) {
    return enqueue(static_cast<Stream *>(stream), [=] {
        memcpy(to, from, bytes);
        return 0;
    });
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    ENTER;
    if (!is_there(to, bytes)) return INVALID_VALUE;
    return copy(reinterpret_cast<void *>(to), from, bytes, stream);
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    ENTER;
    if (!is_there(from, bytes)) return INVALID_VALUE;
    return copy(to, reinterpret_cast<void *>(from), bytes, stream);
}

int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    ENTER;
    if (!is_there(to, bytes) || !is_there(from, bytes)) return INVALID_VALUE;
    return copy(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes, stream);
}

int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) {
    ENTER;
    if (!is_there(to, bytes)) return INVALID_VALUE;
    return enqueue(static_cast<Stream *>(stream), [=] {
        memset(reinterpret_cast<void *>(to), value, bytes);
        return 0;
    });
}

// Of an image its header is looked at, and which names of kernels are in it.
int cuModuleLoadData(void **out, const void *image) {
    ENTER;
    struct {
        uint32_t magic;
        uint16_t version, header;
        uint64_t bytes;
    } head;
    memcpy(&head, image, sizeof head);
    const bool is_aligned = reinterpret_cast<uintptr_t>(image) % 8 == 0;
    if (head.magic != 0xba55ed50 || !is_aligned) return INVALID_IMAGE;
    if (const int refused = number("FAKE_MODULE", 0)) return refused;
    *out = *modules.insert(new Module{static_cast<const char *>(image), head.header + head.bytes}).first;
    return 0;
}

int cuModuleUnload(void *module) {
    ENTER;
    if (!modules.erase(module)) return INVALID_HANDLE;
    delete static_cast<Module *>(module);
    return 0;
}

int cuModuleGetFunction(void **out, void *module, const char *name) {
    ENTER;
    const Module *own = static_cast<Module *>(module);
    const char *lacks = getenv("FAKE_LACKS");
    if ((lacks && strcmp(lacks, name) == 0) || !memmem(own->image, own->bytes, name, strlen(name) + 1))
        return NOT_FOUND;
    for (const emulate::Kernel &kernel : emulate::kernels)
        if (strcmp(kernel.name, name) == 0) {
            functions.push_back(new Function{&kernel});
            *out = functions.back();
            return 0;
        }
    return NOT_FOUND;
}

// 8 is the most shared memory that a launch may ask for.
int cuFuncSetAttribute(void *function, int attribute, int value) {
    ENTER;
    if (attribute != 8 || value < 0 || value > MOST_SHARED) return INVALID_VALUE;
    static_cast<Function *>(function)->most_shared = value;
    return 0;
}

int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                   unsigned threads_z, unsigned shared, void *stream, void **params, void **extra) {
    ENTER;
    const Function *own = static_cast<Function *>(function);
    const bool is_block = threads >= 1 && threads <= 1024 && threads_y == 1 && threads_z == 1;
    const bool is_grid = x >= 1 && y >= 1 && z >= 1 && x < 1u << 31 && y <= 65535 && z <= 65535;
    if (!is_block || !is_grid || shared > own->most_shared || !params || extra) return INVALID_VALUE;
    const char *bytes = static_cast<const char *>(params[0]);
    const std::vector<char> copied(bytes, bytes + own->kernel->params);
    return enqueue(static_cast<Stream *>(stream), [=] {
        const unsigned grid[3] = {x, y, z};
        const char *fault =
            number("FAKE_FAULT", 0) ? "a planted fault"
                                    : emulate_launch(own->kernel->name, grid, threads, shared,
                                                     copied.data(), copied.size(), true);
        if (!fault) return 0;
        fprintf(stderr, "kernel %s: %s\n", own->kernel->name, fault);
        return number("FAKE_FAULT", LAUNCH_FAILED);
    });
}

#undef ENTER
#define ENTER                                                                                      \
    std::lock_guard<std::recursive_mutex> guard(lock);                                             \
    if (failure || current.empty()) return BLAS_EXECUTION_FAILED

int cublasCreate_v2(void **out) {
    ENTER;
    *out = *handles.insert(new Blas).first;
    return 0;
}

int cublasDestroy_v2(void *handle) {
    ENTER;
    if (!handles.erase(handle)) return BLAS_INVALID_VALUE;
    delete static_cast<Blas *>(handle);
    return 0;
}

int cublasSetStream_v2(void *handle, void *stream) {
    ENTER;
    static_cast<Blas *>(handle)->stream = static_cast<Stream *>(stream);
    static_cast<Blas *>(handle)->workspace = nullptr;
    return 0;
}

int cublasSetWorkspace_v2(void *handle, void *workspace, size_t bytes) {
    ENTER;
    const uint64_t at = reinterpret_cast<uint64_t>(workspace);
    if (at % 256 || !is_there(at, bytes)) return BLAS_INVALID_VALUE;
    static_cast<Blas *>(handle)->workspace = workspace;
    return 0;
}

int cublasSetMathMode(void *handle, int math) {
    ENTER;
    static_cast<Blas *>(handle)->math = math;
    return 0;
}

// Column-major: c [m, n] = a [m, k] b [k, n]. 0 and 14 are f32 and bf16, 68 is sums in f32.
int cublasGemmEx(void *handle, int transpose_a, int transpose_b, int m, int n, int k, const void *alpha,
                 const void *a, int a_kind, int a_stride, const void *b, int b_kind, int b_stride,
                 const void *beta, void *c, int c_kind, int c_stride, int compute, int algorithm) {
    ENTER;
    Blas *own = static_cast<Blas *>(handle);
    const bool is_known = (a_kind == 0 || a_kind == 14) && b_kind == a_kind && c_kind == a_kind &&
                          compute == 68 && algorithm == -1 && own->math == 16;
    const bool is_right = m >= 0 && n >= 0 && k >= 0 && a_stride >= (transpose_a ? k : m) &&
                          b_stride >= (transpose_b ? n : k) && c_stride >= m;
    if (!is_known || !is_right) return BLAS_INVALID_VALUE;
    // Without memory of its own it would allocate some.
    if (!own->workspace && spoils_a_capture()) return BLAS_EXECUTION_FAILED;
    const float scale = *static_cast<const float *>(alpha), kept = *static_cast<const float *>(beta);
    const bool is_f32 = a_kind == 0;
    return enqueue(own->stream, [=] {
        for (size_t row = 0; row < size_t(m); row++)
            for (size_t column = 0; column < size_t(n); column++) {
                float sum = 0;
                for (size_t i = 0; i < size_t(k); i++)
                    sum += number_at(a, transpose_a ? row * a_stride + i : i * a_stride + row, is_f32) *
                           number_at(b, transpose_b ? i * b_stride + column : column * b_stride + i, is_f32);
                const size_t at = column * c_stride + row;
                sum *= scale;
                if (kept != 0) sum += kept * number_at(c, at, is_f32);
                if (is_f32)
                    static_cast<float *>(c)[at] = sum;
                else
                    static_cast<__nv_bfloat16 *>(c)[at] = __float2bfloat16_rn(sum);
            }
        return 0;
    });
}

} // extern "C"
