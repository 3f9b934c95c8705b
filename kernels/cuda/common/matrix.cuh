// Tensor cores, one warp at a time (sm_80 and later): 8 x 8 matrices of 16-bit elements from and to shared memory, and
// products of a 16 x 16 with a 16 x 8 matrix. All lanes of the warp take part.
//
// Lane l holds of an 8 x 8 matrix the neighbours (l / 4, 2 (l % 4)) and (l / 4, 2 (l % 4) + 1), in one register.
// PTX ISA, "Warp Level Matrix Instructions".
#pragma once

#include "common/shared_address.cuh"
#include "common/types.cuh"

// ---- shared memory <-> registers ------------------------------------------------------------------------------------

// 1, 2 or 4 matrices. Lane l gives the address of row l % 8 of matrix l / 8: 8 elements, 16 bytes, aligned to that. The
// addresses of lanes beyond the last matrix are not used. ldmatrix
__device__ inline void load_matrices(unsigned (&to)[1], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(to[0])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ inline void load_matrices(unsigned (&to)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ inline void load_matrices(unsigned (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same, each matrix transposed on the way. ldmatrix.trans
__device__ inline void load_matrices_transposed(unsigned (&to)[1], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(to[0])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ inline void load_matrices_transposed(unsigned (&to)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ inline void load_matrices_transposed(unsigned (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// The way back; lanes give addresses as above. stmatrix, sm_90 and later
__device__ inline void store_matrices(void* row, const unsigned (&from)[1]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(shared_address(row)), "r"(from[0])
                 : "memory");
}
__device__ inline void store_matrices(void* row, const unsigned (&from)[2]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(row)), "r"(from[0]),
                 "r"(from[1])
                 : "memory");
}
__device__ inline void store_matrices(void* row, const unsigned (&from)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
                 "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
                 : "memory");
}

// The same, each matrix transposed on the way. stmatrix.trans
__device__ inline void store_matrices_transposed(void* row, const unsigned (&from)[1]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(shared_address(row)),
                 "r"(from[0])
                 : "memory");
}
__device__ inline void store_matrices_transposed(void* row, const unsigned (&from)[2]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(row)),
                 "r"(from[0]), "r"(from[1])
                 : "memory");
}
__device__ inline void store_matrices_transposed(void* row, const unsigned (&from)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
                 "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
                 : "memory");
}

#endif

// ---- products: sums += a b, in fp32 --------------------------------------------------------------------------------

// sums is 16 x 8: sums[0], sums[1] are the neighbours (l / 4, 2 (l % 4) …) of lane l, sums[2], sums[3] those 8 rows
// below.
//
// 16-bit: a is 16 x 16, as four 8 x 8 matrices: top left, bottom left, top right, bottom right. b is 16 x 8, and its
// two 8 x 8 matrices, the upper and the lower, are held transposed: load_matrices of the rows of a matrix stored as 8
// rows of 16, load_matrices_transposed of one stored as 16 rows of 8. mma.m16n8k16
template <typename T>
__device__ void multiply_add(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]);

template <>
__device__ inline void multiply_add<__nv_bfloat16>(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ inline void multiply_add<__half>(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// float: the operands are TF32 (10 bits of fraction, see to_tf32), a is 16 x 8 and b is 8 x 8. Lane l holds of a the
// elements (l / 4, l % 4), the one 8 rows below, the one 4 columns to the right, and the one below that; of b
// (l % 4, l / 4) and the one 4 rows below. mma.m16n8k8
template <>
__device__ inline void multiply_add<float>(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// x rounded to TF32, ties away from zero: the bits that multiply_add<float> takes. cvt.rna.tf32.f32
__device__ inline unsigned to_tf32(float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}
