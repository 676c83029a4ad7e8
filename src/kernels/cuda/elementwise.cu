// Embedding, norms, sums and the gate: a block a row, each number once through the memory.
#include "device.cuh"

template <class T, int N> __device__ void embed(const EmbedParams &p) {
    const T *from = static_cast<const T *>(p.table) + size_t(p.tokens[blockIdx.x]) * p.width;
    T *to = static_cast<T *>(p.out) + size_t(blockIdx.x) * p.width;
    for (int i = threadIdx.x * N; i < p.width; i += blockDim.x * N)
        store(to + i, load<T, N>(from + i));
}

template <class T, int N> __device__ void norm(const NormParams &p) {
    const size_t row = size_t(blockIdx.x) * p.width;
    T *x = static_cast<T *>(p.x) + row;
    const T *y = p.y ? static_cast<const T *>(p.y) + row : nullptr;
    T *out = static_cast<T *>(p.out) + row;
    float squares = 0;
    for (int i = threadIdx.x * N; i < p.width; i += blockDim.x * N) {
        Pack<T, N> v = load<T, N>(x + i);
        if (y) {
            const Pack<T, N> added = load<T, N>(y + i);
            for (int j = 0; j < N; j++)
                v.values[j] = narrow<T>(wide(v.values[j]) + wide(added.values[j]));
            store(x + i, v);
        }
        for (int j = 0; j < N; j++) squares += wide(v.values[j]) * wide(v.values[j]);
    }
    const float mean = block_sum(squares, &shared_memory<float>()) / p.width;
    const float scale = 1.0f / sqrtf(mean + p.eps);
    // Each thread reads what it has read, or written, above.
    for (int i = threadIdx.x * N; i < p.width; i += blockDim.x * N) {
        Pack<T, N> v = load<T, N>(x + i);
        for (int j = 0; j < N; j++)
            v.values[j] = narrow<T>(wide(v.values[j]) * scale * p.weight[i + j]);
        store(out + i, v);
    }
}

template <class T, int N> __device__ void add(const AddParams &p) {
    T *x = static_cast<T *>(p.x) + size_t(blockIdx.x) * p.width;
    const T *y = static_cast<const T *>(p.y) + size_t(blockIdx.x % p.y_rows) * p.width;
    for (int i = threadIdx.x * N; i < p.width; i += blockDim.x * N) {
        Pack<T, N> v = load<T, N>(x + i);
        const Pack<T, N> added = load<T, N>(y + i);
        for (int j = 0; j < N; j++)
            v.values[j] = narrow<T>(wide(v.values[j]) + wide(added.values[j]));
        store(x + i, v);
    }
}

template <class T, int N> __device__ void gate(const GateParams &p) {
    const T *gate = static_cast<const T *>(p.gate_up) + size_t(blockIdx.x) * p.width * 2;
    T *out = static_cast<T *>(p.out) + size_t(blockIdx.x) * p.width;
    for (int i = threadIdx.x * N; i < p.width; i += blockDim.x * N) {
        Pack<T, N> v = load<T, N>(gate + i);
        const Pack<T, N> up = load<T, N>(gate + p.width + i);
        for (int j = 0; j < N; j++) {
            const float x = wide(v.values[j]);
            v.values[j] = narrow<T>(x / (1.0f + expf(-x)) * wide(up.values[j]));
        }
        store(out + i, v);
    }
}

// Vectors where rows are whole vectors, so that each of them is aligned.
#define ROWS_KERNEL(NAME, TYPE, SUFFIX, PARAMS)                                                   \
    extern "C" __global__ void NAME##_##SUFFIX(PARAMS p) {                                        \
        if (p.width % VECTOR<TYPE> == 0)                                                          \
            NAME<TYPE, VECTOR<TYPE>>(p);                                                          \
        else                                                                                      \
            NAME<TYPE, 1>(p);                                                                     \
    }

ROWS_KERNEL(embed, float, f32, EmbedParams)
ROWS_KERNEL(embed, bf16, bf16, EmbedParams)
ROWS_KERNEL(norm, float, f32, NormParams)
ROWS_KERNEL(norm, bf16, bf16, NormParams)
ROWS_KERNEL(add, float, f32, AddParams)
ROWS_KERNEL(add, bf16, bf16, AddParams)
ROWS_KERNEL(gate, float, f32, GateParams)
ROWS_KERNEL(gate, bf16, bf16, GateParams)
