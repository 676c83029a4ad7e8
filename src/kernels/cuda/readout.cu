// Reads the selected neurons of a layer's states: token by token for texts that keep them, as sums
// over a span for texts that do not.
#include "device.cuh"

// Columns and rows of a block that sums.
constexpr int COLUMNS = 32, LANES = 8;

// A block a row and 128 columns.
template <class T> __device__ void gather(const GatherParams &p) {
    const Span span = p.places.spans[p.places.row_spans[blockIdx.x]];
    const long long first = p.first_rows[span.segment];
    const int column = blockIdx.y * blockDim.x + threadIdx.x;
    if (first < LEAST_ROW || column >= p.count) return;
    const long long row = first + span.position + (int(blockIdx.x) - span.row);
    const T *states = static_cast<const T *>(p.states) + size_t(blockIdx.x) * p.width;
    p.out[row * p.features + p.start + column] = wide(states[p.columns[column]]);
}

// A block a span and 32 columns; sums are f64, as on the CPU.
template <class T> __device__ void sum(const GatherParams &p) {
    const Span span = p.places.spans[blockIdx.x];
    if (p.first_rows[span.segment] >= LEAST_ROW) return;
    double *partial = &shared_memory<double>();
    const int at = threadIdx.x % COLUMNS, lane = threadIdx.x / COLUMNS;
    const int column = blockIdx.y * COLUMNS + at;
    const bool is_inside = column < p.count;
    double sum = 0;
    if (is_inside) {
        const T *states = static_cast<const T *>(p.states) + p.columns[column];
        for (int row = lane; row < span.rows; row += LANES)
            sum += wide(states[size_t(span.row + row) * p.width]);
    }
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (lane == 0 && is_inside) {
        for (int other = 1; other < LANES; other++) sum += partial[other * COLUMNS + at];
        p.sums[size_t(span.segment) * p.features + p.start + column] += sum;
    }
}

extern "C" __global__ void gather_f32(GatherParams p) { gather<float>(p); }
extern "C" __global__ void gather_bf16(GatherParams p) { gather<bf16>(p); }
extern "C" __global__ void sum_f32(GatherParams p) { sum<float>(p); }
extern "C" __global__ void sum_bf16(GatherParams p) { sum<bf16>(p); }
