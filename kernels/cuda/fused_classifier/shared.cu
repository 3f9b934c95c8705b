#include "common/math.cuh"
#include "common/online_sum.cuh"
#include "common/packed.cuh"
#include "common/reduce.cuh"

// losses = lse - logits[target], and then logits = dloss (softmax - [column is the target]), 0 in the padding.
// One block a row. With KEEP the row waits in shared memory for its second use, else it is read again, last part first,
// which is what the caches still have. Each thread finds there what it put there itself: no barrier is needed for it.
template <typename T, int N, int THREADS, int PACKS, bool KEEP>
__global__ void __launch_bounds__(THREADS)
    fused_classifier(T* logits, float* losses, const long long* targets, const float* dlosses, int V, int VP) {
    constexpr int STEP = THREADS * N * PACKS;
    extern __shared__ uint4 kept_words[];
    T* kept = reinterpret_cast<T*>(kept_words);
    const int row = blockIdx.x, target = targets[row];
    T* x = logits + row * (long long)VP;
    const float target_logit = to_float(x[target]), dloss = dlosses[row];

    OnlineSum running;
    for (int start = threadIdx.x * N; start < VP; start += STEP) {
        Packed<T, N> packs[PACKS];
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int i = start + p * THREADS * N;
            if (i < VP) packs[p] = load<N>(x + i);
        }
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int i = start + p * THREADS * N;
            if (i >= V) break;
            if (KEEP) store(kept + i, packs[p]);
            Packed<float, N> values = to_floats(packs[p]);
            if (i + N > V) {  // the padding does not count
#pragma unroll
                for (int k = 0; k < N; k++)
                    if (i + k >= V) values[k] = LOWEST;
            }
            running.add(values);
        }
    }
    // Behind these barriers every thread has read target_logit, which one of them is about to overwrite.
    const float largest = block_max<THREADS>(running.largest);
    const float sum = block_sum<THREADS>(running.sum * exp_approx(running.largest - largest));
    if (threadIdx.x == 0) losses[row] = largest + logf(sum) - target_logit;

    const float scale = dloss / sum;
    for (int start = (VP - 1) / STEP * STEP + threadIdx.x * N; start >= 0; start -= STEP) {
        Packed<T, N> packs[PACKS];
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int i = start + p * THREADS * N;
            if (i < V) packs[p] = KEEP ? load<N>(kept + i) : load_once<N>(x + i);
        }
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int i = start + p * THREADS * N;
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
}
