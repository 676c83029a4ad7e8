// Causal attention with an online softmax over keys and values in pages.
//
// The queries of the heads that share a key head stand together: query `i` of a span is head
// `i % group` of token `i / group`, and sees the keys up to its token. A block takes the queries of
// one `Work` at one key head. Where that is few blocks, keys are shared out to more of them, whose
// parts `merge` puts together.
#include "matrix.cuh"

// A query of a span.
struct Query {
    int row, head;
    // The last key that it sees.
    int last_key;
    bool is_inside;
};

__device__ __forceinline__ Query query_of(const Span &span, const Heads &heads, int index) {
    const int group = heads.query / heads.key_value, token = index / group;
    // Of what is beyond the span nothing is written.
    return {span.row + token, int(blockIdx.y) * group + index % group, span.position + token,
            token < span.rows};
}

__device__ __forceinline__ size_t part_row(int slot, int tile_rows, int row, const Heads &heads) {
    return (size_t(slot) * heads.key_value + blockIdx.y) * tile_rows + row;
}

// Queries of a tile for tensor cores, 16 a warp, and keys of a step: whole pages.
constexpr int TILE_ROWS = 64, TILE_KEYS = 64, TILE_THREADS = 128;
static_assert(TILE_KEYS % PAGE_TOKENS == 0, "a step begins with a page");

template <int DIM> struct alignas(16) Tiles {
    bf16 keys[TILE_KEYS * DIM];
    bf16 values[TILE_KEYS * DIM];
};

// Where eight numbers of a tile lie. Chunks of a row change places, so that eight rows' lie in
// different banks.
template <int DIM> __device__ __forceinline__ int swizzled(int row, int chunk) {
    return row * DIM + (chunk ^ (row % 8)) * 8;
}

// Starts to copy the keys (`part` 0) or values (1) from `first` on. In the place of those from `end`
// on, which may never have been written, `first` stands: their weights are 0.
template <int DIM>
__device__ __forceinline__ void load_tile(bf16 *tile, const AttentionParams &p, const Span &span,
                                          int part, int first, int end) {
    constexpr int CHUNKS = DIM / 8;
    for (int i = threadIdx.x; i < TILE_KEYS * CHUNKS; i += TILE_THREADS) {
        const int key = i / CHUNKS, chunk = i % CHUNKS;
        const int token = first + key < end ? first + key : first;
        const bf16 *head =
            page_head<bf16>(p.places, span, token, p.layer, part, blockIdx.y, p.heads);
        copy_async(tile + swizzled<DIM>(key, chunk), head + token % PAGE_TOKENS * DIM + chunk * 8);
    }
}

// bf16 on tensor cores; sums and softmax in f32.
template <int DIM> __device__ void attend_tiles(const AttentionParams &p) {
    constexpr int STEPS = DIM / 16, KEY_COLUMNS = TILE_KEYS / 8, OUT_COLUMNS = DIM / 8;
    Tiles<DIM> &tiles = shared_memory<Tiles<DIM>>();
    const Work work = p.work[blockIdx.x];
    if (work.span < 0) return;
    const Span span = p.places.spans[work.span];
    const Heads heads = p.heads;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    // A thread's place in fragments: rows `group` and `group + 8`, columns from `2 * member` on.
    const int group = lane / 4, member = lane % 4;
    const int width = (heads.query + 2 * heads.key_value) * DIM;

    Query queries[2];
    unsigned q[STEPS][4];
    for (int r = 0; r < 2; r++) {
        queries[r] = query_of(span, heads, work.first + warp * 16 + group + r * 8);
        const bf16 *from = static_cast<const bf16 *>(p.qkv) + size_t(queries[r].row) * width +
                           queries[r].head * DIM + 2 * member;
        for (int step = 0; step < STEPS; step++)
            for (int half = 0; half < 2; half++)
                q[step][2 * half + r] =
                    queries[r].is_inside
                        ? *reinterpret_cast<const unsigned *>(from + step * 16 + half * 8)
                        : 0;
    }

    float out[OUT_COLUMNS][4] = {};
    float largest[2] = {-INFINITY, -INFINITY}, sums[2] = {0, 0};
    load_tile<DIM>(tiles.keys, p, span, 0, work.key_begin, work.key_end);
    for (int first = work.key_begin; first < work.key_end; first += TILE_KEYS) {
        // The keys have come, and nobody needs the last values.
        await_copies();
        __syncthreads();
        load_tile<DIM>(tiles.values, p, span, 1, first, work.key_end);

        float scores[KEY_COLUMNS][4] = {};
        for (int step = 0; step < STEPS; step++) {
            for (int column = 0; column < KEY_COLUMNS; column += 2) {
                // Matrices: eight keys' first and last eight numbers, then the next eight keys'.
                const int key = column * 8 + lane / 16 * 8 + lane % 8;
                unsigned k[4];
                load_matrices(k, tiles.keys + swizzled<DIM>(key, step * 2 + lane / 8 % 2));
                multiply_add(scores[column], q[step], k[0], k[1]);
                multiply_add(scores[column + 1], q[step], k[2], k[3]);
            }
        }
        for (int r = 0; r < 2; r++) {
            const int last_key = min(queries[r].last_key, work.key_end - 1);
            float most = largest[r];
            for (int column = 0; column < KEY_COLUMNS; column++) {
                for (int c = 2 * r; c < 2 * r + 2; c++) {
                    const int key = first + column * 8 + 2 * member + c % 2;
                    float &score = scores[column][c];
                    score = key <= last_key ? score * p.scale : -INFINITY;
                    most = fmaxf(most, score);
                }
            }
            most = lanes_max<4>(most);
            // A query may see none of these keys, and of those before.
            const float base = most == -INFINITY ? 0 : most;
            const float shrink = exp2f(largest[r] - base);
            largest[r] = most;
            float sum = 0;
            for (int column = 0; column < KEY_COLUMNS; column++) {
                for (int c = 2 * r; c < 2 * r + 2; c++) {
                    scores[column][c] = exp2f(scores[column][c] - base);
                    sum += scores[column][c];
                }
            }
            sums[r] = sums[r] * shrink + lanes_sum<4>(sum);
            for (int column = 0; column < OUT_COLUMNS; column++) {
                out[column][2 * r] *= shrink;
                out[column][2 * r + 1] *= shrink;
            }
        }

        // The values have come, and nobody needs the keys.
        await_copies();
        __syncthreads();
        if (first + TILE_KEYS < work.key_end)
            load_tile<DIM>(tiles.keys, p, span, 0, first + TILE_KEYS, work.key_end);
        for (int step = 0; step < TILE_KEYS / 16; step++) {
            // Two columns of scores' fragments are one of weights.
            const float *even = scores[2 * step], *odd = scores[2 * step + 1];
            const unsigned weights[4] = {pair(even[0], even[1]), pair(even[2], even[3]),
                                         pair(odd[0], odd[1]), pair(odd[2], odd[3])};
            for (int column = 0; column < OUT_COLUMNS; column += 2) {
                // Matrices: eight numbers of the first and last eight keys, then the next eight.
                const int key = step * 16 + lane % 16;
                unsigned v[4];
                load_transposed(v, tiles.values + swizzled<DIM>(key, column + lane / 16));
                multiply_add(out[column], weights, v[0], v[1]);
                multiply_add(out[column + 1], weights, v[2], v[3]);
            }
        }
    }

    for (int r = 0; r < 2; r++) {
        const Query query = queries[r];
        if (!query.is_inside) continue;
        if (work.slot < 0) {
            bf16 *to = static_cast<bf16 *>(p.out) +
                       (size_t(query.row) * heads.query + query.head) * DIM + 2 * member;
            for (int column = 0; column < OUT_COLUMNS; column++)
                *reinterpret_cast<unsigned *>(to + column * 8) =
                    pair(out[column][2 * r] / sums[r], out[column][2 * r + 1] / sums[r]);
        } else {
            const size_t row = part_row(work.slot, TILE_ROWS, warp * 16 + group + r * 8, heads);
            float *to = p.parts + row * DIM + 2 * member;
            for (int column = 0; column < OUT_COLUMNS; column++)
                store(to + column * 8, Pack<float, 2>{{out[column][2 * r], out[column][2 * r + 1]}});
            if (member == 0) store(p.extents + row * 2, Pack<float, 2>{{largest[r], sums[r]}});
        }
    }
}

// A block's share of registers: no more blocks to a multiprocessor than need none spilled.
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 3) attention_64(AttentionParams p) {
    attend_tiles<64>(p);
}
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 2) attention_128(AttentionParams p) {
    attend_tiles<128>(p);
}

// For any head of up to 256 numbers, in f32: a warp takes two queries, and a step is one page, so
// that a lane has one key for one query.
constexpr int PLAIN_ROWS = 8, PLAIN_THREADS = 128, MOST_DIM = 256;

template <class T> __device__ void attend_plain(const AttentionParams &p) {
    const Heads heads = p.heads;
    const int dim = heads.dim;
    // A number more a key: the keys' numbers lie in different banks.
    float *queries = &shared_memory<float>();
    float *keys = queries + PLAIN_ROWS * dim, *values = keys + PAGE_TOKENS * (dim + 1);
    const Work work = p.work[blockIdx.x];
    if (work.span < 0) return;
    const Span span = p.places.spans[work.span];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int width = (heads.query + 2 * heads.key_value) * dim;
    for (int i = threadIdx.x; i < PLAIN_ROWS * dim; i += PLAIN_THREADS) {
        const Query query = query_of(span, heads, work.first + i / dim);
        const T *from = static_cast<const T *>(p.qkv) + size_t(query.row) * width + query.head * dim;
        queries[i] = query.is_inside ? wide(from[i % dim]) : 0;
    }

    const int row = warp * 2 + lane / PAGE_TOKENS;
    const int last_key = min(query_of(span, heads, work.first + row).last_key, work.key_end - 1);
    float out[2][MOST_DIM / WARP] = {};
    float largest = -INFINITY, sum = 0;
    for (int first = work.key_begin; first < work.key_end; first += PAGE_TOKENS) {
        // Nobody needs the last keys and values.
        __syncthreads();
        const T *from = page_head<T>(p.places, span, first, p.layer, 0, blockIdx.y, heads);
        const T *from_values = page_head<T>(p.places, span, first, p.layer, 1, blockIdx.y, heads);
        for (int i = threadIdx.x; i < PAGE_TOKENS * dim; i += PLAIN_THREADS) {
            const bool is_there = first + i / dim < work.key_end;
            keys[i + i / dim] = is_there ? wide(from[i]) : 0;
            values[i] = is_there ? wide(from_values[i]) : 0;
        }
        __syncthreads();
        const float *query = queries + row * dim;
        const float *key = keys + lane % PAGE_TOKENS * (dim + 1);
        float score = 0;
        for (int i = 0; i < dim; i++) score += query[i] * key[i];
        score = first + lane % PAGE_TOKENS <= last_key ? score * p.scale : -INFINITY;
        const float most = fmaxf(largest, lanes_max<PAGE_TOKENS>(score));
        const float base = most == -INFINITY ? 0 : most;
        const float shrink = exp2f(largest - base), weight = exp2f(score - base);
        largest = most;
        sum = sum * shrink + lanes_sum<PAGE_TOKENS>(weight);
        for (int r = 0; r < 2; r++) {
            const float row_shrink = __shfl_sync(ALL_LANES, shrink, r * PAGE_TOKENS);
            for (int i = 0; i < MOST_DIM / WARP; i++) out[r][i] *= row_shrink;
            for (int t = 0; t < PAGE_TOKENS; t++) {
                const float w = __shfl_sync(ALL_LANES, weight, r * PAGE_TOKENS + t);
                for (int i = 0; i < MOST_DIM / WARP; i++)
                    if (i * WARP + lane < dim) out[r][i] += w * values[t * dim + i * WARP + lane];
            }
        }
    }

    for (int r = 0; r < 2; r++) {
        const float row_sum = __shfl_sync(ALL_LANES, sum, r * PAGE_TOKENS);
        const float row_largest = __shfl_sync(ALL_LANES, largest, r * PAGE_TOKENS);
        const Query query = query_of(span, heads, work.first + warp * 2 + r);
        if (!query.is_inside) continue;
        const size_t part = part_row(max(work.slot, 0), PLAIN_ROWS, warp * 2 + r, heads);
        for (int i = 0; i < MOST_DIM / WARP; i++) {
            const int at = i * WARP + lane;
            if (at >= dim) continue;
            if (work.slot < 0)
                static_cast<T *>(p.out)[(size_t(query.row) * heads.query + query.head) * dim + at] =
                    narrow<T>(out[r][i] / row_sum);
            else
                p.parts[part * dim + at] = out[r][i];
        }
        if (work.slot >= 0 && lane == 0)
            store(p.extents + part * 2, Pack<float, 2>{{row_largest, row_sum}});
    }
}

extern "C" __global__ void __launch_bounds__(PLAIN_THREADS) attention_f32(AttentionParams p) {
    attend_plain<float>(p);
}
extern "C" __global__ void __launch_bounds__(PLAIN_THREADS) attention_bf16(AttentionParams p) {
    attend_plain<bf16>(p);
}

// Puts the parts of queries together: every MERGE_BLOCKS-th of a tile's, one after the other.
constexpr int MERGE_BLOCKS = 8;

template <class T> __device__ void merge(const MergeParams &p) {
    const Merge merge = p.merges[blockIdx.x];
    if (merge.count == 0) return;
    const Span span = p.spans[merge.span];
    const Heads heads = p.heads;
    for (int row = blockIdx.z; row < p.tile_rows; row += MERGE_BLOCKS) {
        const Query query = query_of(span, heads, merge.first + row);
        if (!query.is_inside) return;
        float largest = -INFINITY, sum = 0;
        for (int i = 0; i < merge.count; i++)
            largest =
                fmaxf(largest, p.extents[part_row(merge.slot + i, p.tile_rows, row, heads) * 2]);
        for (int i = 0; i < merge.count; i++) {
            const float *extent = p.extents + part_row(merge.slot + i, p.tile_rows, row, heads) * 2;
            sum += extent[1] * exp2f(extent[0] - largest);
        }
        T *to =
            static_cast<T *>(p.out) + (size_t(query.row) * heads.query + query.head) * heads.dim;
        for (int at = threadIdx.x; at < heads.dim; at += blockDim.x) {
            float out = 0;
            for (int i = 0; i < merge.count; i++) {
                const size_t part = part_row(merge.slot + i, p.tile_rows, row, heads);
                out += p.parts[part * heads.dim + at] * exp2f(p.extents[part * 2] - largest);
            }
            to[at] = narrow<T>(out / sum);
        }
    }
}

extern "C" __global__ void merge_f32(MergeParams p) { merge<float>(p); }
extern "C" __global__ void merge_bf16(MergeParams p) { merge<bf16>(p); }
