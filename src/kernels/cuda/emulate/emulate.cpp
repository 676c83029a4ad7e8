// See emulate.h. The kernels themselves are compiled here, unchanged.
#include <cstdio>
#include <csetjmp>
#include <cstdlib>
#include <memory>
#include <ucontext.h>
#include <vector>

#include "../attention.cu"
#include "../elementwise.cu"
#include "../readout.cu"
#include "../rotate.cu"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulate {

constexpr size_t STACK = 256 * 1024;

// A barrier's state: who waits runs again when `round` changes.
struct Meeting {
    int arrived = 0;
    unsigned round = 0;
};

struct Warp {
    Meeting meeting;
    Operation operation;
    // Of this round and the last one, which a lane may not have read yet.
    alignas(16) char slots[2][WARP * SLOT];
};

struct Copy {
    void *to;
    const void *from;
};

// Contexts are for a fiber's first entry alone: switching by them asks the system for the signal
// mask each time.
struct Fiber {
    ucontext_t context;
    jmp_buf place;
    bool has_begun;
    dim3 index;
    int number;
    bool is_done;
    // What it waits for.
    const Meeting *meeting;
    unsigned round;
    std::vector<Copy> copies;
    void *fake_stack;
};

struct Launch {
    void (*kernel)(const void *);
    const void *params;
    dim3 block, block_size;
    int threads;
    // Ascending order, and copies are made when they are awaited; or descending, and at once.
    bool ascending;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Meeting meeting;
    std::unique_ptr<char[]> shared;
    size_t shared_bytes;
    Fiber *current;
    jmp_buf scheduler;
    void *fake_stack;
    const char *failure;
};

static thread_local Launch *launch;
static thread_local std::vector<char> stacks;
#ifdef __SANITIZE_ADDRESS__
static thread_local const void *scheduler_stack;
static thread_local size_t scheduler_stack_bytes;
#endif

static void switch_to_scheduler(bool for_good) {
    Fiber *fiber = launch->current;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber->fake_stack, scheduler_stack,
                                   scheduler_stack_bytes);
#else
    (void)for_good;
#endif
    if (_setjmp(fiber->place) == 0) _longjmp(launch->scheduler, 1);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fiber->fake_stack, nullptr, nullptr);
#endif
}

static void run_fiber() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
    launch->kernel(launch->params);
    if (!launch->current->copies.empty()) launch->failure = "copies that nobody awaits";
    launch->current->is_done = true;
    switch_to_scheduler(true);
}

static void switch_to_fiber(Fiber &fiber) {
    launch->current = &fiber;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&launch->fake_stack, fiber.context.uc_stack.ss_sp, STACK);
#endif
    if (_setjmp(launch->scheduler) == 0) {
        if (fiber.has_begun) _longjmp(fiber.place, 1);
        fiber.has_begun = true;
        setcontext(&fiber.context);
    }
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(launch->fake_stack, nullptr, nullptr);
#endif
}

void fail(const char *message) {
    if (!launch->failure) launch->failure = message;
    launch->current->is_done = true;
    switch_to_scheduler(false);
    abort();
}

const dim3 &thread_index() { return launch->current->index; }
const dim3 &block_index() { return launch->block; }
const dim3 &block_size() { return launch->block_size; }
int lane() { return launch->current->number % WARP; }

void *shared_memory(size_t bytes) {
    if (bytes > launch->shared_bytes) fail("less shared memory than the kernel's");
    return launch->shared.get();
}

static void meet(Meeting &meeting, int all) {
    Fiber *fiber = launch->current;
    if (++meeting.arrived == all) {
        meeting.arrived = 0;
        meeting.round++;
        return;
    }
    fiber->meeting = &meeting;
    fiber->round = meeting.round;
    switch_to_scheduler(false);
    fiber->meeting = nullptr;
}

void barrier() { meet(launch->meeting, launch->threads); }

const char *exchange(Operation operation, const void *mine, size_t bytes) {
    Warp &warp = launch->warps[launch->current->number / WARP];
    if (warp.meeting.arrived == 0) warp.operation = operation;
    if (warp.operation != operation) fail("lanes of a warp at different operations");
    char *slots = warp.slots[warp.meeting.round % 2];
    memcpy(slots + lane() * SLOT, mine, bytes);
    meet(warp.meeting, WARP);
    return slots;
}

static void perform(const Copy &copy) { memcpy(copy.to, copy.from, 16); }

void copy_async(void *to, const void *from) {
    if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16)
        fail("a copy of 16 bytes that is not aligned");
    const Copy copy = {to, from};
    if (launch->ascending)
        launch->current->copies.push_back(copy);
    else
        perform(copy);
}

void await_copies() {
    for (const Copy &copy : launch->current->copies) perform(copy);
    launch->current->copies.clear();
}

static void run_block() {
    memset(launch->shared.get(), 0xff, launch->shared_bytes);
    launch->meeting = {};
    for (Warp &warp : launch->warps) warp.meeting = {};
    for (Fiber &fiber : launch->fibers) {
        getcontext(&fiber.context);
        fiber.context.uc_stack = {stacks.data() + fiber.number * STACK, 0, STACK};
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, run_fiber, 0);
        fiber.is_done = fiber.has_begun = false;
        fiber.meeting = nullptr;
        fiber.copies.clear();
    }
    int left = launch->threads;
    while (left > 0 && !launch->failure) {
        bool has_moved = false;
        for (int i = 0; i < launch->threads && !launch->failure; i++) {
            Fiber &fiber = launch->fibers[launch->ascending ? i : launch->threads - 1 - i];
            if (fiber.is_done || (fiber.meeting && fiber.meeting->round == fiber.round)) continue;
            has_moved = true;
            switch_to_fiber(fiber);
            left -= fiber.is_done;
        }
        if (!has_moved) launch->failure = "a barrier that some threads never reach";
    }
}

struct Kernel {
    const char *name;
    void (*run)(const void *);
    size_t params;
};

#define KERNEL(NAME, PARAMS)                                                                      \
    {#NAME, [](const void *p) { NAME(*static_cast<const PARAMS *>(p)); }, sizeof(PARAMS)}
#define KERNELS(NAME, PARAMS) KERNEL(NAME##_f32, PARAMS), KERNEL(NAME##_bf16, PARAMS)

static const Kernel kernels[] = {
    KERNELS(embed, EmbedParams),         KERNELS(norm, NormParams),
    KERNELS(add, AddParams),             KERNELS(gate, GateParams),
    KERNELS(rotate, RotateParams),       KERNELS(gather, GatherParams),
    KERNELS(sum, GatherParams),          KERNELS(sum_pages, Reading),
    KERNELS(attention, AttentionParams),
    KERNEL(attention_64, AttentionParams), KERNEL(attention_128, AttentionParams),
    KERNELS(merge, MergeParams),
};

} // namespace emulate

// Runs a kernel. Null, or what went wrong.
extern "C" const char *emulate_launch(const char *name, const unsigned *grid, unsigned threads,
                                      size_t shared_bytes, const void *params, size_t params_bytes,
                                      bool ascending) {
    using namespace emulate;
    const Kernel *kernel = nullptr;
    for (const Kernel &known : kernels)
        if (strcmp(known.name, name) == 0) kernel = &known;
    if (!kernel) return "no such kernel";
    if (kernel->params != params_bytes) return "parameters of another size";
    if (threads == 0 || threads % WARP || threads > 1024) return "a block that is not whole warps";
    if (shared_bytes > 48 * 1024) return "more shared memory than a block has";
    if (stacks.size() < threads * STACK) stacks.resize(threads * STACK);
    Launch state = {};
    state.kernel = kernel->run;
    state.params = params;
    state.block_size = {threads, 1, 1};
    state.threads = static_cast<int>(threads);
    state.ascending = ascending;
    state.fibers.resize(threads);
    state.warps.resize(threads / WARP);
    state.shared.reset(new char[shared_bytes]);
    state.shared_bytes = shared_bytes;
    for (unsigned i = 0; i < threads; i++) {
        state.fibers[i].number = static_cast<int>(i);
        state.fibers[i].index = {i, 0, 0};
    }
    launch = &state;
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                state.block = {x, y, z};
                run_block();
                if (state.failure) return state.failure;
            }
    launch = nullptr;
    return nullptr;
}
