#include "common/async_copy.cuh"
#include "common/math.cuh"
#include "common/online_sum.cuh"
#include "common/packed.cuh"
#include "common/reduce.cuh"

// N neighbouring elements on their way to shared memory; single ones of 16 bits no asynchronous copy takes.
template <int N, typename T>
__device__ void copy_pack(T* to, const T* from) {
    if constexpr (N * sizeof(T) >= 4)
        copy_async<N * sizeof(T)>(to, from);
    else
        *to = *from;
}

// losses = lse - logits[target], and then logits = dloss (softmax - [column is the target]), 0 in the padding.
// A block takes every gridDim.x-th row. In shared memory a thread finds only what it copied there itself.
template <typename T, int N, int THREADS, int PACKS>
__global__ void __launch_bounds__(THREADS)
    fused_classifier(T* logits, float* losses, const long long* targets, const float* dlosses, int rows, int V,
                     int VP) {
    constexpr int STEP = THREADS * N * PACKS;
    extern __shared__ uint4 row_words[];
    T* kept = reinterpret_cast<T*>(row_words);
    const int first = threadIdx.x * N;

    const T* begin = logits + blockIdx.x * (long long)VP;
    for (int i = first; i < V; i += THREADS * N) copy_pack<N>(kept + i, begin + i);
    close_copies();
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        T* x = logits + row * (long long)VP;
        const int target = targets[row];
        const float target_logit = threadIdx.x == 0 ? to_float(x[target]) : 0, dloss = dlosses[row];

        wait_copies<0>();
        OnlineSum running;
        for (int start = first; start < V; start += STEP) {
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                const int i = start + p * THREADS * N;
                if (i >= V) break;
                Packed<float, N> values = load_floats<N>(kept + i);
                if (i + N > V) {  // the padding does not count
#pragma unroll
                    for (int k = 0; k < N; k++)
                        if (i + k >= V) values[k] = LOWEST;
                }
                running.add(values);
            }
        }
        // Behind these barriers the first thread has read target_logit, which one of them is about to overwrite.
        const float largest = block_max<THREADS>(running.largest);
        const float sum = block_sum<THREADS>(running.sum * exp_approx(running.largest - largest));
        if (threadIdx.x == 0) losses[row] = largest + logf(sum) - target_logit;

        const float scale = dloss / sum;
        const T* next = row + gridDim.x < rows ? x + gridDim.x * (long long)VP : nullptr;
        for (int start = first; start < VP; start += STEP) {
            Packed<T, N> packs[PACKS];
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                const int i = start + p * THREADS * N;
                if (i >= V) break;
                packs[p] = load<N>(kept + i);
                if (next) copy_pack<N>(kept + i, next + i);
            }
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                const int i = start + p * THREADS * N;
                if (i >= VP) break;
                Packed<float, N> values = to_floats(packs[p]);
#pragma unroll
                for (int k = 0; k < N; k++) values[k] = i + k < V ? scale * exp_approx(values[k] - largest) : 0;
                if (i <= target && target < i + N) {
#pragma unroll
                    for (int k = 0; k < N; k++)
                        if (i + k == target) values[k] -= dloss;
                }
                store_floats_once(x + i, values);
            }
        }
        close_copies();
    }
}
