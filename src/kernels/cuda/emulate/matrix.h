// What stands for the instructions of `matrix.cuh`, from the layouts that the PTX manual gives for
// them: "Matrix Fragments for mma.m16n8k16" and "ldmatrix".
#pragma once

#include <cstring>

static inline float low_half(unsigned pair) { return emulate::widen(pair & 0xffff); }
static inline float high_half(unsigned pair) { return emulate::widen(pair >> 16); }

static inline void multiply_add(float d[4], const unsigned a[4], unsigned b0, unsigned b1) {
    struct Operands {
        unsigned a[4], b[2];
    } mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    emulate::Exchange<Operands> all(emulate::MULTIPLY_ADD, mine);
    const int lane = emulate::lane();
    for (int c = 0; c < 4; c++) {
        // groupID is lane >> 2, threadID_in_group lane % 4.
        const int row = lane / 4 + (c < 2 ? 0 : 8), column = lane % 4 * 2 + c % 2;
        float sum = d[c];
        for (int k = 0; k < 16; k++) {
            // a: row is groupID for a0, a1, a4, a5 and 8 more for the others; column is
            // threadID_in_group * 2 + (i & 1), and 8 more for i >= 4.
            const unsigned a = all[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2];
            // b: row is threadID_in_group * 2 + (i & 1), and 8 more for i >= 2; column is groupID.
            const unsigned b = all[column * 4 + k % 8 / 2].b[k / 8];
            sum += k % 2 ? high_half(a) * high_half(b) : low_half(a) * low_half(b);
        }
        d[c] = sum;
    }
}

static inline void load_lines(unsigned out[4], const bf16 *row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row) % 16) emulate::fail("ldmatrix of a row that is not aligned");
    emulate::Exchange<const bf16 *> rows(transposed ? emulate::LOAD_TRANSPOSED
                                                    : emulate::LOAD_MATRICES,
                                         row);
    const int lane = emulate::lane();
    for (int matrix = 0; matrix < 4; matrix++) {
        bf16 both[2];
        for (int i = 0; i < 2; i++) {
            const int major = lane / 4, minor = lane % 4 * 2 + i;
            both[i] = transposed ? rows[matrix * 8 + minor][major] : rows[matrix * 8 + major][minor];
        }
        memcpy(&out[matrix], both, sizeof both);
    }
    // Nobody overwrites what another is still to read.
    emulate::Exchange<int>(emulate::LOADED, 0);
}

static inline void load_matrices(unsigned out[4], const bf16 *row) { load_lines(out, row, false); }
static inline void load_transposed(unsigned out[4], const bf16 *row) { load_lines(out, row, true); }

static inline void copy_async(bf16 *to, const bf16 *from) { emulate::copy_async(to, from); }
static inline void await_copies() { emulate::await_copies(); }
