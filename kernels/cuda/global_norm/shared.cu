#include "common/many.cuh"
#include "common/packed.cuh"
#include "common/reduce.cuh"

// The sum over a block, in thread 0; in double, so that the order of a few thousand additions leaves no trace in fp32.
template <int THREADS>
__device__ double block_sum_of_doubles(double value) {
    constexpr int WARPS = THREADS / WARP;
    __shared__ double parts[WARPS];
    for (int distance = WARP / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
    if (lane_id() == 0) parts[warp_id()] = value;
    __syncthreads();
    double total = 0;
    if (threadIdx.x == 0)
        for (int w = 0; w < WARPS; w++) total += parts[w];
    return total;
}

// Squares add up well in fp32 where their sum is in between: it did not overflow, and what underflowed is too small
// beside it to matter.
constexpr float LEAST = 0x1p-90f, MOST = 3.402823466e38f;

// The sum of squares of this thread's share of one chunk: CHUNK elements of one tensor, or its last ones.
template <int N, int THREADS, int CHUNK, typename T>
__device__ double squares_of(const T* grad, long long size) {
    Packed<float, N> squares = filled<N>(0);  // N chains of additions a thread
    auto add = [&](const Packed<float, N>& g) {
#pragma unroll
        for (int k = 0; k < N; k++) squares[k] += g[k] * g[k];
    };
    if (size == CHUNK) {
#pragma unroll
        for (int i = 0; i < CHUNK; i += THREADS * N) add(load_floats_once<N>(grad + i + threadIdx.x * N));
    } else {
        for (int i = threadIdx.x * N; i < size; i += THREADS * N) {
            Packed<float, N> g = filled<N>(0);
            for (int k = 0; k < N && i + k < size; k++) g[k] = to_float(grad[i + k]);
            add(g);
        }
    }
    float found = 0;
#pragma unroll
    for (int k = 0; k < N; k++) found += squares[k];
    if (found >= LEAST && found <= MOST) return found;
    double sum = 0;  // again in double; rare, but for threads that have nothing to add
    for (int i = threadIdx.x * N; i < size; i += THREADS * N)
        for (int k = 0; k < N && i + k < size; k++) {
            double g = to_float(grad[i + k]);
            sum += g * g;
        }
    return sum;
}

// sums[block] = the sum of squares of every gridDim.x-th of `chunks` chunks. Blocks are as many as the second stage has
// threads, at most: what one block adds in the end is then one number a thread, however many gradients there are.
template <typename T, int TENSORS, int N, int THREADS, int CHUNK>
__global__ void __launch_bounds__(THREADS)
    sum_squares(double* sums, const __grid_constant__ Many<const T*, TENSORS> grads,
                const __grid_constant__ Many<long long, TENSORS> sizes,
                const __grid_constant__ Many<int, TENSORS> firsts, int chunks) {
    static_assert(CHUNK % (THREADS * N) == 0, "only the end of a tensor is uneven");
    double sum = 0;
    for (int chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
        const int t = tensor_of(firsts, chunk);
        const long long begin = (chunk - firsts[t]) * (long long)CHUNK;
        sum += squares_of<N, THREADS, CHUNK>(grads[t] + begin, min((long long)CHUNK, sizes[t] - begin));
    }
    sum = block_sum_of_doubles<THREADS>(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// One block: norm = sqrt(sums[0] + … + sums[count - 1])
template <int THREADS>
__global__ void __launch_bounds__(THREADS) norm_of_sums(float* norm, const double* sums, int count) {
    double sum = 0;
    for (int i = threadIdx.x; i < count; i += THREADS) sum += sums[i];
    sum = block_sum_of_doubles<THREADS>(sum);
    if (threadIdx.x == 0) *norm = sqrt(sum);
}
