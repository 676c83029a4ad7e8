// Norms and rotates the heads of joined queries, keys and values, a warp a head: queries in their
// place, keys and values into their pages.
#include "device.cuh"

template <class T> __device__ void rotate(const RotateParams &p) {
    const Heads heads = p.heads;
    const int all = heads.query + 2 * heads.key_value, half = heads.dim / 2;
    const int index = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    // The same for the whole warp.
    if (index >= p.rows * all) return;
    const int row = index / all, head = index % all, lane = threadIdx.x % WARP;
    const int number = p.places.row_spans[row];
    if (number < 0) return;
    T *from = static_cast<T *>(p.qkv) + (size_t(row) * all + head) * heads.dim;
    T *to = from;
    const bool is_query = head < heads.query;
    const bool is_value = head >= heads.query + heads.key_value;
    if (!is_query) {
        const Span span = p.places.spans[number];
        const int token = span.position + row - span.row;
        const int at = (head - heads.query) % heads.key_value;
        to = page_head<T>(p.places, span, token, p.layer, is_value, at, heads) +
             token % PAGE_TOKENS * heads.dim;
    }
    if (is_value) {
        for (int i = lane; i < heads.dim; i += WARP) to[i] = from[i];
        return;
    }
    const float *weight = is_query ? p.query_norm : p.key_norm;
    float scale = 1;
    if (weight) {
        float squares = 0;
        for (int i = lane; i < heads.dim; i += WARP) squares += wide(from[i]) * wide(from[i]);
        scale = 1.0f / sqrtf(lanes_sum(squares) / heads.dim + p.eps);
    }
    // A lane reads and writes the same pairs: nothing is overwritten that another reads.
    for (int i = lane; i < half; i += WARP) {
        float a = wide(from[i]), b = wide(from[i + half]);
        if (weight) {
            a *= scale * weight[i];
            b *= scale * weight[i + half];
        }
        const float cos = p.cos[size_t(row) * half + i], sin = p.sin[size_t(row) * half + i];
        to[i] = narrow<T>(a * cos - b * sin);
        to[i + half] = narrow<T>(b * cos + a * sin);
    }
}

extern "C" __global__ void rotate_f32(RotateParams p) { rotate<float>(p); }
extern "C" __global__ void rotate_bf16(RotateParams p) { rotate<bf16>(p); }
