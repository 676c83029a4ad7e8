// Tensor cores and asynchronous copies, an instruction a function: all inline PTX is here, and so is
// what stands for it where there is no GPU (`emulate/matrix.h`, from the layouts of the PTX manual).
#pragma once

#include "device.cuh"

#ifdef __CUDACC__

// d += a b: a [16, 16], b [16, 8], d [16, 8], m16n8k16's fragments.
__device__ __forceinline__ void multiply_add(float d[4], const unsigned a[4], unsigned b0,
                                             unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8x8 matrices of bf16: lane i gives where row i % 8 of matrix i / 8 lies in shared memory.
__device__ __forceinline__ void load_matrices(unsigned out[4], const bf16 *row) {
    const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void load_transposed(unsigned out[4], const bf16 *row) {
    const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
}

// Starts to copy 16 bytes to shared memory.
__device__ __forceinline__ void copy_async(bf16 *to, const bf16 *from) {
    const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}

// Waits for all copies that this thread has started.
__device__ __forceinline__ void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

#else
#include "emulate/matrix.h"
#endif

// Two numbers as a register of a fragment, the first in the low half.
__device__ __forceinline__ unsigned pair(float low, float high) {
    const Pack<bf16, 2> both = {{narrow<bf16>(low), narrow<bf16>(high)}};
    unsigned out;
    memcpy(&out, &both, sizeof out);
    return out;
}
