// Runs kernels on the CPU, for tests: a block's threads are fibers of one thread, which go from one
// barrier to the next. They go in ascending or in descending order, so that what one writes and
// another reads without a barrier comes out wrong in one of them; shared memory begins as NaN.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

struct dim3 {
    unsigned x, y, z;
};

struct __nv_bfloat16 {
    uint16_t bits;
};

namespace emulate {

enum Operation { SHUFFLE, MULTIPLY_ADD, LOAD_MATRICES, LOAD_TRANSPOSED, LOADED };

const dim3 &thread_index();
const dim3 &block_index();
const dim3 &block_size();
int lane();
// The launch's shared memory, of which `bytes` are needed.
void *shared_memory(size_t bytes);
void barrier();
// Gives every lane of the warp what each has brought, lane by lane, `SLOT` bytes each.
constexpr size_t SLOT = 32;
const char *exchange(Operation operation, const void *mine, size_t bytes);
void copy_async(void *to, const void *from);
void await_copies();
[[noreturn]] void fail(const char *message);

// What each lane of a warp has brought to an operation.
template <class T> class Exchange {
  public:
    Exchange(Operation operation, const T &mine) : slots(exchange(operation, &mine, sizeof mine)) {
        static_assert(sizeof(T) <= SLOT, "fits a slot");
    }
    const T &operator[](int lane) const {
        return *reinterpret_cast<const T *>(slots + lane * SLOT);
    }

  private:
    const char *slots;
};

static inline float widen(unsigned bits) {
    const uint32_t wide = bits << 16;
    float x;
    memcpy(&x, &wide, sizeof x);
    return x;
}

} // namespace emulate

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (emulate::thread_index())
#define blockIdx (emulate::block_index())
#define blockDim (emulate::block_size())

template <class S> static inline S &shared_memory() {
    return *static_cast<S *>(emulate::shared_memory(sizeof(S)));
}

static inline void __syncthreads() { emulate::barrier(); }

template <class T> static inline T __shfl_sync(unsigned, T x, int from) {
    return emulate::Exchange<T>(emulate::SHUFFLE, x)[from];
}

template <class T> static inline T __shfl_xor_sync(unsigned, T x, int mask) {
    return emulate::Exchange<T>(emulate::SHUFFLE, x)[emulate::lane() ^ mask];
}

static inline float __bfloat162float(__nv_bfloat16 x) { return emulate::widen(x.bits); }

// To the nearest, ties to even.
static inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (std::isnan(x)) return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

using std::max;
using std::min;
