// All lanes of a warp store the result of a reduction to one word: where a product is fused into the first sum, the lanes
// differ in their last bits. Kernels of 64 threads; those with a `// BUG` differ by something else, and are races.

#define KERNEL extern "C" __global__ void
#define ARGUMENTS float *out, const float *in, unsigned *counters, int n

const unsigned ALL = 0xffffffff;

// One square is much larger than the others, and needs rounding: whether it was rounded is seen in the sum.
__device__ float given(const float* in, int i) { return in[i] * 0.37f + 0.1f + (i % 32 ? 0 : 123.4567f); }
__device__ float given(const float* in) { return given(in, threadIdx.x); }
__device__ float given_twice(const float* in) { return given(in, threadIdx.x % 32); }
// The sum of squares of a warp: each lane rounds its neighbour's square, and not its own.
__device__ float fused_sum(float x, bool upwards = false) {
    float sum = fmaf(x, x, __shfl_xor_sync(ALL, x * x, upwards ? 1 : 16));
    for (int k = 1; k < 5; k++) sum += __shfl_xor_sync(ALL, sum, upwards ? 1 << k : 16 >> k);
    return sum;
}
__device__ void store_shared(float* to, float value) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))), "f"(value) : "memory");
}

KERNEL one_store(ARGUMENTS) {
    __shared__ float sums[2];
    sums[threadIdx.x / 32] = fused_sum(given(in));
    __syncthreads();
    out[threadIdx.x] = sums[0] + sums[1];
}
// The products cancel, so that what is left differs by much of itself and by little of what was added up.
__device__ float cancelling_sum(const float* in) {
    float x = given(in), other = __shfl_xor_sync(ALL, x, 16), sign = threadIdx.x % 32 < 16 ? 1 : -1;
    float y = sign > 0 ? x : other;
    x = sign * y;
    float sum = fmaf(x, y, __shfl_xor_sync(ALL, x * y, 16));
    for (int offset = 8; offset; offset /= 2) sum += __shfl_xor_sync(ALL, sum, offset);
    return sum;
}
KERNEL cancelling(ARGUMENTS) {
    __shared__ float sums[2];
    sums[threadIdx.x / 32] = cancelling_sum(in);
    __syncthreads();
    out[threadIdx.x] = sums[0] + sums[1];
}
// Scratch that is too small for all sums is used again and again: what is stored last was added up some barriers ago.
KERNEL in_batches(ARGUMENTS) {
    __shared__ float sums[2];
    float sum = cancelling_sum(in), total = 0;
#pragma unroll 1
    for (int batch = 0; batch < 3; batch++) {
        if (batch < 2) store_shared(sums + threadIdx.x / 32, n);
        else sums[threadIdx.x / 32] = sum;
        __syncthreads();
        total += sums[0] + sums[1];
        __syncthreads();
    }
    out[threadIdx.x] = total;
}
// The tile has 32 elements: the second warp holds the same as the first, lane by lane.
KERNEL warps_hold_the_same(ARGUMENTS) {
    __shared__ float sum;
    sum = fused_sum(given_twice(in));
    __syncthreads();
    out[threadIdx.x] = sum;
}
KERNEL halves(ARGUMENTS) {
    __shared__ unsigned short sum;
    unsigned short rounded;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded) : "f"(1.00048828125f + 1e-7f * (threadIdx.x % 2 ? 1 : -1)));
    sum = rounded;
    __syncthreads();
    out[threadIdx.x] = sum;
}
// Sums that overflow: infinity in one lane, NaN in another.
KERNEL overflown(ARGUMENTS) {
    __shared__ float sums[2];
    float sum = (fabsf(given(in)) + 10) * 3e38f;
    sums[threadIdx.x / 32] = sum - (threadIdx.x % 2 ? sum : 0);
    __syncthreads();
    out[threadIdx.x] = sums[0] + sums[1];
}
// NaN of all threads: a card has one, and this processor's differ in their signs.
KERNEL nans(ARGUMENTS) {
    float infinite = (fabsf(in[0]) + 10) * 3e38f, nan = infinite - infinite;
    out[0] = threadIdx.x % 2 ? nan : -nan;
}
KERNEL nans_of_integers(ARGUMENTS) {
    out[0] = __int_as_float(0x7fc00000 | threadIdx.x);  // BUG
}
KERNEL nan_or_number(ARGUMENTS) {
    float infinite = (fabsf(in[0]) + 10) * 3e38f, nan = infinite - infinite;
    out[0] = threadIdx.x == 40 ? 1.5f * infinite / infinite + in[0] * 0 : threadIdx.x == 41 ? in[1] * 3 : nan;  // BUG
}
KERNEL two_instructions(ARGUMENTS) {
    __shared__ float sums[2];
    float sum = fused_sum(given(in));
    if (threadIdx.x % 32 < 16) store_shared(sums + threadIdx.x / 32, sum);  // BUG
    else store_shared(sums + threadIdx.x / 32, sum);  // BUG
    __syncthreads();
    out[threadIdx.x] = sums[0] + sums[1];
}
KERNEL two_executions(ARGUMENTS) {
    __shared__ float sums[2];
    float sum = fused_sum(given(in));
#pragma unroll 1
    for (int k = 0; k < n / 16; k++) store_shared(sums + threadIdx.x / 32, sum * (1 + 1e-7f * k));  // BUG
    __syncthreads();
    out[threadIdx.x] = sums[0] + sums[1];
}
KERNEL two_warps(ARGUMENTS) {
    __shared__ float sum;
    sum = fused_sum(given_twice(in), threadIdx.x / 32);  // BUG
    __syncthreads();
    out[threadIdx.x] = sum;
}
KERNEL more_than_rounding(ARGUMENTS) {
    __shared__ float sums[2];
    sums[threadIdx.x / 32] = fused_sum(given(in)) * (1 + 1e-4f * (threadIdx.x % 32));  // BUG
    __syncthreads();
    out[threadIdx.x] = sums[0] + sums[1];
}
KERNEL many_small_steps(ARGUMENTS) {
    __shared__ float sums[2];
    sums[threadIdx.x / 32] = fused_sum(given(in)) * (1 + 2e-6f * (threadIdx.x % 32));  // BUG
    __syncthreads();
    out[threadIdx.x] = sums[0] + sums[1];
}
KERNEL integers(ARGUMENTS) {
    __shared__ unsigned last[2];
    last[threadIdx.x / 32] = 1000000000 + threadIdx.x;  // BUG
    __syncthreads();
    out[threadIdx.x] = static_cast<float>(last[0] + last[1]);
}
// Lanes add to one word without atomics: what each stores is near what the others do, and most of it is lost.
KERNEL lost_updates(ARGUMENTS) {
    __shared__ float sum;
    sum = 1e6f;
    __syncthreads();
    sum += 0.1f * threadIdx.x;  // BUG
    __syncthreads();
    out[threadIdx.x] = sum;
}
