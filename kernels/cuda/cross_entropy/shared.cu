#include "common/math.cuh"
#include "common/online_sum.cuh"
#include "common/packed.cuh"
#include "common/reduce.cuh"

// lse = log(sum over the first V columns of exp(logits)); losses = lse - logits[target]. One block a row, which is read
// once: PACKS independent loads a thread at a time.
template <typename T, int N, int THREADS, int PACKS>
__global__ void __launch_bounds__(THREADS)
    cross_entropy_forward(float* losses, float* lse, const T* logits, const long long* targets, int V, int VP) {
    const int row = blockIdx.x;
    const T* x = logits + row * (long long)VP;
    OnlineSum running;
    for (int start = threadIdx.x * N; start < V; start += THREADS * N * PACKS) {
        Packed<T, N> packs[PACKS];
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int i = start + p * THREADS * N;
            if (i < V) packs[p] = load_once<N>(x + i);
        }
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int i = start + p * THREADS * N;
            if (i >= V) break;
            Packed<float, N> values = to_floats(packs[p]);
            if (i + N > V) {  // the padding does not count
#pragma unroll
                for (int k = 0; k < N; k++)
                    if (i + k >= V) values[k] = LOWEST;
            }
            running.add(values);
        }
    }
    const float largest = block_max<THREADS>(running.largest);
    const float sum = block_sum<THREADS>(running.sum * exp_approx(running.largest - largest));
    if (threadIdx.x == 0) {
        lse[row] = largest + logf(sum);
        losses[row] = largest + logf(sum) - to_float(x[targets[row]]);
    }
}

// dlogits = dloss (exp(logits - lse) - [column is the target]), and 0 in the padding. One block a row.
template <typename T, int N, int THREADS, int PACKS>
__global__ void __launch_bounds__(THREADS)
    cross_entropy_backward(T* dlogits, const float* dlosses, const T* logits, const long long* targets,
                           const float* lse, int V, int VP) {
    const int row = blockIdx.x, target = targets[row];
    const T* x = logits + row * (long long)VP;
    T* dx = dlogits + row * (long long)VP;
    const float dloss = dlosses[row], row_lse = lse[row];
    for (int start = threadIdx.x * N; start < VP; start += THREADS * N * PACKS) {
        Packed<T, N> packs[PACKS];
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int i = start + p * THREADS * N;
            if (i < V) packs[p] = load_once<N>(x + i);
        }
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int i = start + p * THREADS * N;
            if (i >= VP) break;
            Packed<float, N> values = to_floats(packs[p]);
#pragma unroll
            for (int k = 0; k < N; k++) values[k] = i + k < V ? dloss * exp_approx(values[k] - row_lse) : 0;
            if (i <= target && target < i + N) {
#pragma unroll
                for (int k = 0; k < N; k++)
                    if (i + k == target) values[k] -= dloss;
            }
            store_floats_once(dx + i, values);
        }
    }
}
