// One small kernel for each tensor-core instruction of a warp. What lane l holds in register r is word 32 r + l of `in`
// and `out`, so that the test, and not this file, says how fragments map to matrices.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/matrix.cuh"

// --- ldmatrix and stmatrix: shared memory holds 8 * COUNT rows of 16 bytes, in the order `rows` says ------------------

template <int COUNT, bool TRANSPOSED>
__global__ void load_rows(unsigned* out, const unsigned* in, const int* rows) {
    __shared__ __align__(16) unsigned words[4 * 8 * 4];
    int lane = threadIdx.x;
    for (int i = lane; i < 4 * 8 * 4; i += 32) words[i] = in[i];
    __syncwarp();
    unsigned to[COUNT];
    const unsigned* row = words + 4 * rows[lane];
    if constexpr (TRANSPOSED) load_matrices_transposed(to, row);
    else load_matrices(to, row);
    for (int r = 0; r < COUNT; r++) out[32 * r + lane] = to[r];
}

template <int COUNT, bool TRANSPOSED>
__global__ void store_rows(unsigned* out, const unsigned* in, const int* rows) {
    __shared__ __align__(16) unsigned words[4 * 8 * 4];
    int lane = threadIdx.x;
    for (int i = lane; i < 4 * 8 * 4; i += 32) words[i] = 0;
    __syncwarp();
    unsigned from[COUNT];
    for (int r = 0; r < COUNT; r++) from[r] = in[32 * r + lane];
    unsigned* row = words + 4 * rows[lane];
    if constexpr (TRANSPOSED) store_matrices_transposed(row, from);
    else store_matrices(row, from);
    __syncwarp();
    for (int i = lane; i < 4 * 8 * 4; i += 32) out[i] = words[i];
}

// Generic addresses, as compilers other than nvcc write them.
extern "C" __global__ void matrices_by_generic_address(unsigned* out, const unsigned* in) {
    __shared__ __align__(16) unsigned words[8 * 4];
    int lane = threadIdx.x;
    words[lane] = in[lane];
    __syncwarp();
    unsigned piece;
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.b16 {%0}, [%1];" : "=r"(piece) : "l"(words + lane % 8 * 4) : "memory");
    __syncwarp();
    asm volatile("stmatrix.sync.aligned.m8n8.x1.b16 [%0], {%1};" ::"l"(words + lane % 8 * 4), "r"(piece) : "memory");
    __syncwarp();
    out[lane] = words[lane];
}

// --- mma.sync: `in` has the registers of A, then of B, then of C ------------------------------------------------------

#define MMA(NAME, INSTRUCTION, A, B, C, A_TEXT, B_TEXT, C_TEXT, D_TEXT)                                \
    extern "C" __global__ void NAME(unsigned* out, const unsigned* in) {                               \
        unsigned a[4], b[2], c[4], d[4];                                                               \
        int lane = threadIdx.x;                                                                        \
        for (int r = 0; r < 4; r++) {                                                                  \
            a[r] = r < A ? in[32 * r + lane] : 0;                                                      \
            if (r < 2) b[r] = r < B ? in[32 * (A + r) + lane] : 0;                                     \
            c[r] = r < C ? in[32 * (A + B + r) + lane] : 0;                                            \
            d[r] = 0;                                                                                  \
        }                                                                                              \
        asm volatile("mma.sync.aligned." INSTRUCTION " {" D_TEXT "}, {" A_TEXT "}, {" B_TEXT "}, {" C_TEXT "};" \
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                                  \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]),    \
                       "r"(c[1]), "r"(c[2]), "r"(c[3]));                                               \
        for (int r = 0; r < C; r++) out[32 * r + lane] = d[r];                                         \
    }
#define WIDE(NAME, INSTRUCTION) MMA(NAME, INSTRUCTION, 4, 2, 4, "%4,%5,%6,%7", "%8,%9", "%10,%11,%12,%13", "%0,%1,%2,%3")
#define NARROW(NAME, INSTRUCTION) MMA(NAME, INSTRUCTION, 2, 1, 4, "%4,%5", "%8", "%10,%11,%12,%13", "%0,%1,%2,%3")

WIDE(mma_bf16_k16, "m16n8k16.row.col.f32.bf16.bf16.f32")
WIDE(mma_f16_k16, "m16n8k16.row.col.f32.f16.f16.f32")
WIDE(mma_tf32_k8, "m16n8k8.row.col.f32.tf32.tf32.f32")
NARROW(mma_bf16_k8, "m16n8k8.row.col.f32.bf16.bf16.f32")
NARROW(mma_f16_k8, "m16n8k8.row.col.f32.f16.f16.f32")
NARROW(mma_tf32_k4, "m16n8k4.row.col.f32.tf32.tf32.f32")
MMA(mma_f16_k16_f16, "m16n8k16.row.col.f16.f16.f16.f16", 4, 2, 2, "%4,%5,%6,%7", "%8,%9", "%10,%11", "%0,%1")
MMA(mma_f16_k8_f16, "m16n8k8.row.col.f16.f16.f16.f16", 2, 1, 2, "%4,%5", "%8", "%10,%11", "%0,%1")
WIDE(mma_s8, "m16n8k32.row.col.s32.s8.s8.s32")
WIDE(mma_s8_u8_saturated, "m16n8k32.row.col.satfinite.s32.s8.u8.s32")
NARROW(mma_u8_s8_k16, "m16n8k16.row.col.s32.u8.s8.s32")
MMA(mma_s8_8_rows, "m8n8k16.row.col.s32.s8.s8.s32", 1, 1, 2, "%4", "%8", "%10,%11", "%0,%1")
WIDE(mma_e4m3, "m16n8k32.row.col.f32.e4m3.e4m3.f32")
WIDE(mma_e5m2_e4m3, "m16n8k32.row.col.f32.e5m2.e4m3.f32")

// Doubles: `in` and `out` have 32 of each register.
extern "C" __global__ void mma_f64_8_rows(double* out, const double* in) {
    double d[2];
    asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%4,%5};" : "=d"(d[0]), "=d"(d[1])
                 : "d"(in[threadIdx.x]), "d"(in[32 + threadIdx.x]), "d"(in[64 + threadIdx.x]), "d"(in[96 + threadIdx.x]));
    for (int r = 0; r < 2; r++) out[32 * r + threadIdx.x] = d[r];
}
extern "C" __global__ void mma_f64(double* out, const double* in) {
    double d[4], from[10];
    for (int r = 0; r < 10; r++) from[r] = in[32 * r + threadIdx.x];
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
                 : "=d"(d[0]), "=d"(d[1]), "=d"(d[2]), "=d"(d[3])
                 : "d"(from[0]), "d"(from[1]), "d"(from[2]), "d"(from[3]), "d"(from[4]), "d"(from[5]), "d"(from[6]),
                   "d"(from[7]), "d"(from[8]), "d"(from[9]));
    for (int r = 0; r < 4; r++) out[32 * r + threadIdx.x] = d[r];
}

// --- errors -----------------------------------------------------------------------------------------------------------

extern "C" __global__ void mma_without_a_lane(unsigned* out, const unsigned* in) {
    float sums[4] = {};
    unsigned a[4] = {in[0], in[0], in[0], in[0]}, b[2] = {in[0], in[0]};
    if (threadIdx.x != 31) multiply_add<__nv_bfloat16>(sums, a, b);
    out[threadIdx.x] = __float_as_uint(sums[0]);
}
extern "C" __global__ void misaligned_row(unsigned* out, const unsigned* in) {
    __shared__ __align__(16) unsigned words[8 * 4 + 2];
    for (int i = threadIdx.x; i < 34; i += 32) words[i] = in[i];
    __syncwarp();
    unsigned to[1];
    load_matrices(to, words + threadIdx.x % 8 * 4 + 2);
    out[threadIdx.x] = to[0];
}
extern "C" __global__ void row_never_written(unsigned* out, const unsigned* in) {
    __shared__ __align__(16) unsigned words[8 * 4];
    if (threadIdx.x < 28) words[threadIdx.x] = in[threadIdx.x];
    __syncwarp();
    unsigned to[1];
    load_matrices(to, words + threadIdx.x % 8 * 4);
    out[threadIdx.x] = to[0];
}
// Rows of 128 bytes: the eight rows of a matrix lie in the same banks.
template <bool SWIZZLED>
__global__ void rows_in_banks(unsigned* out, const unsigned* in) {
    __shared__ __align__(128) unsigned words[32 * 32];
    int lane = threadIdx.x;
    for (int i = lane; i < 32 * 32; i += 32) words[i] = in[i % 32];
    __syncwarp();
    unsigned to[4];
    load_matrices(to, words + lane * 32 + (SWIZZLED ? lane % 8 * 4 : 0));
    out[lane] = to[0] ^ to[1] ^ to[2] ^ to[3];
}
