#include "common/aligned_row.cuh"
#include "common/math.cuh"
#include "common/online_sum.cuh"
#include "common/reduce.cuh"

// A block's rows, every gridDim.x-th one, as one stream of batches: PACKS packs of each thread, of which STAGES batches
// are on their way to shared memory at any time, those of the next row behind those of this one. A thread reads only what
// it copied itself, so there is no barrier.
template <typename T, int THREADS, int PACKS, int STAGES>
struct Stream {
    using Pack = typename AlignedRow<T>::Pack;
    static constexpr int BATCH = THREADS * PACKS;
    const T* logits;
    int rows, V, VP;
    int columns;   // of a row that batches reach over: V, or VP where the rest has none to read
    Pack* copies;  // [stage][pack][thread], from this thread's own on
    int row, start = 0, stage = 0;  // of the batch that is asked for next

    __device__ void ask() {
        if (row < rows) {
            const AlignedRow<T> at(row * (long long)VP);
            const int packs = at.packs(V);
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                const int i = start + p * THREADS + threadIdx.x;
                if (i < packs) at.copy(copies + stage * BATCH + p * THREADS, logits, i, rows * (long long)VP);
            }
            start += BATCH;
            if (start >= at.packs(columns)) start = 0, row += gridDim.x;
        }
        close_copies();  // a group a batch, also where there is none
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }

    // The oldest batch, which is the one from pack `first` on of a row that has so many packs to read.
    __device__ void take(Pack (&batch)[PACKS], int first, int packs) {
        wait_copies<STAGES - 1>();
#pragma unroll
        for (int p = 0; p < PACKS; p++)
            if (first + p * THREADS + int(threadIdx.x) < packs) batch[p] = copies[stage * BATCH + p * THREADS];
        ask();
    }
};

// lse = log(sum over the first V columns of exp(logits)); losses = lse - logits[target].
template <typename T, int THREADS, int PACKS, int STAGES, int BLOCKS>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    cross_entropy_forward(float* losses, float* lse, const T* logits, const long long* targets, int rows, int V,
                          int VP) {
    constexpr int N = AlignedRow<T>::N;
    using Batches = Stream<T, THREADS, PACKS, STAGES>;
    extern __shared__ uint4 dynamic[];
    __shared__ float target_logit;
    int row = blockIdx.x;
    Batches stream = {logits, rows, V, VP, V, reinterpret_cast<typename Batches::Pack*>(dynamic) + threadIdx.x, row};
    for (int s = 0; s < STAGES; s++) stream.ask();

    int next_target = targets[row];
    for (; row < rows; row += gridDim.x) {
        const int target = next_target;
        if (row + gridDim.x < rows) next_target = targets[row + gridDim.x];
        const AlignedRow<T> at(row * (long long)VP);
        const int packs = at.packs(V);
        OnlineSum running;
        for (int start = 0; start < packs; start += Batches::BATCH) {
            typename Batches::Pack batch[PACKS];
            stream.take(batch, start, packs);
            Packed<float, N> values[PACKS];
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                const int i = start + p * THREADS + threadIdx.x, column = at.column(i);
                values[p] = filled<N>(LOWEST);
                if (i >= packs) continue;
                values[p] = to_floats(batch[p]);
                at.mask(values[p], i, V, LOWEST);  // neighbours and the padding do not count
                if (column <= target && target < column + N) {
#pragma unroll
                    for (int k = 0; k < N; k++)
                        if (column + k == target) target_logit = values[p][k];
                }
            }
            running.add(values);
        }
        const float largest = block_max<THREADS>(running.largest);
        // Behind its barriers target_logit is there, and before those of block_sum it has been read.
        const float below = threadIdx.x == 0 ? largest - target_logit : 0;
        const float sum = block_sum<THREADS>(running.sum * exp_approx(running.largest - largest));
        if (threadIdx.x == 0) {
            const float log_sum = logf(sum);
            lse[row] = largest + log_sum;
            losses[row] = below + log_sum;
        }
    }
}

// dlogits = dloss (exp(logits - lse) - [column is the target]), and 0 in the padding.
template <typename T, int THREADS, int PACKS, int STAGES, int BLOCKS>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    cross_entropy_backward(T* dlogits, const float* dlosses, const T* logits, const long long* targets,
                           const float* lse, int rows, int V, int VP) {
    constexpr int N = AlignedRow<T>::N;
    using Batches = Stream<T, THREADS, PACKS, STAGES>;
    extern __shared__ uint4 dynamic[];
    int row = blockIdx.x;
    Batches stream = {logits, rows, V, VP, VP, reinterpret_cast<typename Batches::Pack*>(dynamic) + threadIdx.x, row};
    for (int s = 0; s < STAGES; s++) stream.ask();

    int next_target = targets[row];
    float next_dloss = dlosses[row], next_lse = lse[row];
    for (; row < rows; row += gridDim.x) {
        const int target = next_target;
        const float dloss = next_dloss, row_lse = next_lse;
        if (const int next = row + gridDim.x; next < rows)
            next_target = targets[next], next_dloss = dlosses[next], next_lse = lse[next];
        const AlignedRow<T> at(row * (long long)VP);
        const int packs = at.packs(V), all = at.packs(VP);
        for (int start = 0; start < all; start += Batches::BATCH) {
            typename Batches::Pack batch[PACKS];
            stream.take(batch, start, packs);
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                const int i = start + p * THREADS + threadIdx.x, column = at.column(i);
                if (i >= all) break;
                Packed<float, N> values = to_floats(batch[p]);
#pragma unroll
                for (int k = 0; k < N; k++) values[k] = column + k < V ? dloss * exp_approx(values[k] - row_lse) : 0;
                if (column <= target && target < column + N) {
#pragma unroll
                    for (int k = 0; k < N; k++)
                        if (column + k == target) values[k] -= dloss;
                }
                at.store(dlogits, i, VP, values);
            }
        }
    }
}
