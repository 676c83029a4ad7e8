// What the kernels share: numbers, vectors of them, and sums over a warp or a block.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>

// A block's shared memory, as large as its launch says.
template <class S> __device__ __forceinline__ S &shared_memory() {
    extern __shared__ __align__(16) unsigned char memory[];
    return *reinterpret_cast<S *>(memory);
}
#else
#include "emulate/emulate.h"
#endif

#include "params.cuh"

using bf16 = __nv_bfloat16;

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ float wide(bf16 x) { return __bfloat162float(x); }

template <class T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return __float2bfloat16_rn(x); }

// Numbers that are read and written together.
template <class T, int N> struct alignas(sizeof(T) * N) Pack {
    T values[N];
};

// As many as 16 bytes hold.
template <class T> constexpr int VECTOR = 16 / sizeof(T);

template <class T, int N> __device__ __forceinline__ Pack<T, N> load(const T *from) {
    return *reinterpret_cast<const Pack<T, N> *>(from);
}

template <class T, int N> __device__ __forceinline__ void store(T *to, const Pack<T, N> &pack) {
    *reinterpret_cast<Pack<T, N> *>(to) = pack;
}

template <int LANES = WARP> __device__ __forceinline__ float lanes_sum(float x) {
    for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

template <int LANES = WARP> __device__ __forceinline__ float lanes_max(float x) {
    for (int step = LANES / 2; step > 0; step /= 2)
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

// The sum over a block of whole warps; `partial` holds one number a warp.
__device__ __forceinline__ float block_sum(float x, float *partial) {
    x = lanes_sum(x);
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / WARP; warp++) sum += partial[warp];
    return sum;
}

// Keys (`part` 0) or values (1) of one head in the page that holds a text's token `token`.
template <class T>
__device__ __forceinline__ T *page_head(const Places &places, const Span &span, int token,
                                        int layer, int part, int head, const Heads &heads) {
    T *page = reinterpret_cast<T *>(places.tables[span.table + token / PAGE_TOKENS]);
    return page + layer * span.layer_stride +
           static_cast<long long>(part * heads.key_value + head) * PAGE_TOKENS * heads.dim;
}
