// Reads the selected neurons of a layer's states: into pages for texts whose tokens' neurons are kept,
// as sums over a span for texts whose are not.
#include "device.cuh"

// Columns and rows of a block that sums.
constexpr int COLUMNS = 32, LANES = 8;

// A block a row and 128 columns.
template <class T> __device__ void gather(const GatherParams &p) {
    const int number = p.places.row_spans[blockIdx.x];
    if (number < 0) return;
    const Span span = p.places.spans[number];
    const int table = p.reading.texts[span.segment].table;
    const int column = blockIdx.y * blockDim.x + threadIdx.x;
    if (table < 0 || column >= p.count) return;
    const int token = span.position + (int(blockIdx.x) - span.row);
    T *page = reinterpret_cast<T *>(p.reading.tables[table + token / PAGE_TOKENS]);
    const T *states = static_cast<const T *>(p.states) + size_t(blockIdx.x) * p.width;
    page[size_t(token % PAGE_TOKENS) * p.reading.features + p.start + column] =
        states[p.columns[column]];
}

// The sum of what each of a column's lanes has, in the order of the lanes; for lane 0.
__device__ __forceinline__ double lanes_total(double mine, int at, int lane) {
    double *partial = &shared_memory<double>();
    partial[threadIdx.x] = mine;
    __syncthreads();
    if (lane == 0)
        for (int other = 1; other < LANES; other++) mine += partial[other * COLUMNS + at];
    return mine;
}

// A block a span and 32 columns; sums are f64, as on the CPU.
template <class T> __device__ void sum(const GatherParams &p) {
    const Span span = p.places.spans[blockIdx.x];
    if (span.rows == 0 || p.reading.texts[span.segment].table >= 0) return;
    const int at = threadIdx.x % COLUMNS, lane = threadIdx.x / COLUMNS;
    const int column = blockIdx.y * COLUMNS + at;
    const bool is_inside = column < p.count;
    double sum = 0;
    if (is_inside) {
        const T *states = static_cast<const T *>(p.states) + p.columns[column];
        for (int row = lane; row < span.rows; row += LANES)
            sum += wide(states[size_t(span.row + row) * p.width]);
    }
    sum = lanes_total(sum, at, lane);
    if (lane == 0 && is_inside)
        (*p.reading.sums)[size_t(span.segment) * p.reading.features + p.start + column] += sum;
}

// A block a text and 32 features: the sums over its first tokens, from its pages. Whatever ran
// when, a sum is made in the same order.
template <class T> __device__ void sum_pages(const Reading &p) {
    const ReadText text = p.texts[blockIdx.x];
    if (text.table < 0) return;
    const int at = threadIdx.x % COLUMNS, lane = threadIdx.x / COLUMNS;
    const int feature = blockIdx.y * COLUMNS + at;
    const bool is_inside = feature < p.features;
    double sum = 0;
    if (is_inside) {
        for (int token = lane; token < text.summed; token += LANES) {
            const T *page =
                reinterpret_cast<const T *>(p.tables[text.table + token / PAGE_TOKENS]);
            sum += wide(page[size_t(token % PAGE_TOKENS) * p.features + feature]);
        }
    }
    sum = lanes_total(sum, at, lane);
    if (lane == 0 && is_inside) (*p.sums)[size_t(blockIdx.x) * p.features + feature] = sum;
}

extern "C" __global__ void gather_f32(GatherParams p) { gather<float>(p); }
extern "C" __global__ void gather_bf16(GatherParams p) { gather<bf16>(p); }
extern "C" __global__ void sum_f32(GatherParams p) { sum<float>(p); }
extern "C" __global__ void sum_bf16(GatherParams p) { sum<bf16>(p); }
extern "C" __global__ void sum_pages_f32(Reading p) { sum_pages<float>(p); }
extern "C" __global__ void sum_pages_bf16(Reading p) { sum_pages<bf16>(p); }
