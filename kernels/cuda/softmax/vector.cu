#include "common/aligned_row.cuh"
#include "common/math.cuh"
#include "common/online_sum.cuh"
#include "common/reduce.cuh"

// A block's rows, every gridDim.x-th one, of tensors of R rows of S columns: one row of each lies in shared memory, where
// the next one takes its place as it leaves. A thread finds there only what it copied itself: its packs are every
// THREADS-th one, of every row. Masked packs are not read.
//
//     rows.start();
//     for (long long r = blockIdx.x; r < R; r += gridDim.x) {
//         rows.wait();
//         rows.each(r, …);      // any number of times
//         rows.leave(out, r, …);
//     }
template <typename T, int THREADS, int PACKS, int TENSORS>
struct LongRows {
    using Row = AlignedRow<T>;
    using Pack = typename Row::Pack;
    using Values = Packed<float, Row::N>;
    const T* tensors[TENSORS];
    long long R;
    int S;
    bool causal;
    Pack* kept;  // [tensor][room]
    int room;

    // Row r sees the first so many columns.
    __device__ int visible(long long r) const { return causal ? int(r % S) + 1 : S; }

    __device__ void ask(const Row& row, int i) const {
#pragma unroll
        for (int t = 0; t < TENSORS; t++) row.copy(kept + t * room + i, tensors[t], i, R * S);
    }

    __device__ void start() const {
        const Row row(blockIdx.x * (long long)S);
        for (int i = threadIdx.x; i < row.packs(visible(blockIdx.x)); i += THREADS) ask(row, i);
        close_copies();
    }

    __device__ void wait() const { wait_copies<0>(); }

    // f(values) for each of this thread's packs of row r: an array of one pack of each tensor, `outside` where masked.
    template <typename F>
    __device__ void each(long long r, float outside, F f) const {
        const Row row(r * S);
        const int columns = visible(r), seen = row.packs(columns);
        for (int i = threadIdx.x; i < seen; i += THREADS) {
            Values values[TENSORS];
#pragma unroll
            for (int t = 0; t < TENSORS; t++) {
                values[t] = to_floats(kept[t * room + i]);
                row.mask(values[t], i, columns, outside);
            }
            f(values);
        }
    }

    // Row r of `to` = f(values), 0 where masked, and the block's next row is on its way to where r was.
    template <typename F>
    __device__ void leave(T* to, long long r, F f) const {
        const long long later = r + gridDim.x;
        const Row row(r * S), next(later * S);
        const int columns = visible(r), seen = row.packs(columns), packs = row.packs(S);
        const int next_seen = later < R ? next.packs(visible(later)) : 0;  // may be a pack more than there are
        for (int start = threadIdx.x; start < max(packs, next_seen); start += THREADS * PACKS) {
            Pack batch[PACKS][TENSORS];
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                const int i = start + p * THREADS;
                if (i < seen) {
#pragma unroll
                    for (int t = 0; t < TENSORS; t++) batch[p][t] = kept[t * room + i];
                }
                if (i < next_seen) ask(next, i);
            }
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                const int i = start + p * THREADS;
                if (i >= packs) break;
                Values values[TENSORS], y = filled<Row::N>(0);
                if (i < seen) {
#pragma unroll
                    for (int t = 0; t < TENSORS; t++) values[t] = to_floats(batch[p][t]);
                    y = f(values);
                    row.mask(y, i, columns, 0);
                }
                row.store(to, i, S, y);
            }
        }
        close_copies();
    }
};

// out = exp(x - max) / sum of exp(x - max), 0 where masked. `room`: packs of a row.
template <typename T, int THREADS, int PACKS>
__global__ void __launch_bounds__(THREADS)
    softmax_forward(T* out, const T* x, long long R, int S, bool causal, int room) {
    using Rows = LongRows<T, THREADS, PACKS, 1>;
    using Values = typename Rows::Values;
    extern __shared__ uint4 dynamic[];
    const Rows rows = {{x}, R, S, causal, reinterpret_cast<typename Rows::Pack*>(dynamic), room};
    rows.start();
    for (long long r = blockIdx.x; r < R; r += gridDim.x) {
        rows.wait();
        OnlineSum mine;
        rows.each(r, MINUS_INFINITY, [&](const Values (&values)[1]) { mine.add(values); });
        const float largest = block_max<THREADS>(mine.largest);
        const float scale = reciprocal_approx(block_sum<THREADS>(mine.sum * exp_approx(mine.largest - largest)));
        rows.leave(out, r, [&](const Values (&values)[1]) {
            Values y;
#pragma unroll
            for (int k = 0; k < AlignedRow<T>::N; k++) y[k] = exp_approx(values[0][k] - largest) * scale;
            return y;
        });
    }
}

// dx = out * (dout - sum(dout * out)), 0 where masked.
template <typename T, int THREADS, int PACKS>
__global__ void __launch_bounds__(THREADS)
    softmax_backward(T* dx, const T* dout, const T* out, long long R, int S, bool causal, int room) {
    using Rows = LongRows<T, THREADS, PACKS, 2>;
    using Values = typename Rows::Values;
    extern __shared__ uint4 dynamic[];
    const Rows rows = {{dout, out}, R, S, causal, reinterpret_cast<typename Rows::Pack*>(dynamic), room};
    rows.start();
    for (long long r = blockIdx.x; r < R; r += gridDim.x) {
        rows.wait();
        float dot = 0;
        rows.each(r, 0, [&](const Values (&values)[2]) {
#pragma unroll
            for (int k = 0; k < AlignedRow<T>::N; k++) dot += values[0][k] * values[1][k];
        });
        dot = block_sum<THREADS>(dot);
        rows.leave(dx, r, [&](const Values (&values)[2]) {
            Values y;
#pragma unroll
            for (int k = 0; k < AlignedRow<T>::N; k++) y[k] = values[1][k] * (values[0][k] - dot);
            return y;
        });
    }
}
