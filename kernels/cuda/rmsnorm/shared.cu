#include "common/rmsnorm.cuh"
#include "common/rows_in_turns.cuh"

// A row is one warp's, of a block of ROWS warps, or a whole block's.
template <typename T, int C, int N, int PACKS, int THREADS, int ROWS>
__global__ void __launch_bounds__(THREADS * ROWS)
    rmsnorm_forward(T* out, float* rstd, const T* x, const T* __restrict__ weight, long long rows, float eps) {
    long long r = blockIdx.x * (long long)ROWS + threadIdx.x / THREADS;
    if (r >= rows) return;  // a whole warp, and only where a row is one warp's: no barrier is ahead
    Packed<float, N> values[PACKS];
    for_packs<N, PACKS, THREADS>(C, [&](int p, int i) { values[p] = load_floats_once<N>(x + r * C + i); });
    scale_row<T, C, N, PACKS, THREADS>(out + r * C, rstd + r, values, weight, eps);
}

// norm = x * rstd, dnorm = dout * weight
// dx = rstd * (dnorm - norm * mean(dnorm * norm)) + dresidual, the mean over C
//
// A block stays and takes every gridDim.x-th group of ROWS rows; each thread keeps the sums for its columns of dweight
// in registers until the end. `partials` is C floats a block.
template <typename T, int C, int N, int PACKS, int THREADS, int ROWS, int BLOCKS_PER_SM, bool AHEAD>
__global__ void __launch_bounds__(THREADS * ROWS, BLOCKS_PER_SM)
    rmsnorm_backward_rows(T* dx, float* partials, const T* dout, const T* dresidual, const T* x, const T* weight,
                          const float* rstd, long long rows) {
    extern __shared__ uint4 dynamic[];  // two rows a group of threads, where AHEAD; later the groups' sums
    constexpr float SHARE = 1.0f / C;  // of an element in a mean
    Packed<float, N> weight_sum[PACKS];
#pragma unroll
    for (int p = 0; p < PACKS; p++) weight_sum[p] = filled<N>(0);

    const long long step = gridDim.x * (long long)ROWS;
    long long r = blockIdx.x * (long long)ROWS + threadIdx.x / THREADS;
    Rows<T, C, N, PACKS, THREADS, ROWS, AHEAD, false> row = {
        x, dout, dresidual, nullptr, rstd, rows, reinterpret_cast<Packed<T, N>*>(dynamic) + threadIdx.x};
    row.ask(r);
    for (; r < rows; r += step) {
        row.begin(r, r + step);
        const float s = row.rstd;
        float product = 0;
        for_packs<N, PACKS, THREADS>(C, [&](int p, int i) {
            Packed<float, N> value = row.x(p), dy = row.dout(p), w = load_floats<N>(weight + i);
#pragma unroll
            for (int k = 0; k < N; k++) {
                float share = dy[k] * (value[k] * s);
                product += share * w[k];
                weight_sum[p][k] += share;
            }
        });
        float mean = block_sum<THREADS>(product) * SHARE;  // of dnorm * norm

        for_packs<N, PACKS, THREADS>(C, [&](int p, int i) {
            Packed<float, N> value = row.x(p), dy = row.dout(p), w = load_floats<N>(weight + i), y = row.dresidual(p);
#pragma unroll
            for (int k = 0; k < N; k++) y[k] += s * (dy[k] * w[k] - value[k] * s * mean);
            store_floats(dx + r * C + i, y);
        });
    }

    float* all = reinterpret_cast<float*>(dynamic);
    if constexpr (AHEAD && ROWS > 1) __syncthreads();  // `all` lies where others' rows were
    add_groups<C, N, PACKS, THREADS, ROWS>(partials + blockIdx.x * (long long)C, weight_sum, all);
}

constexpr int COLUMNS = 32;      // of a block of the second stage: a warp's lanes, so that it reads 128 bytes
constexpr int SLICES = 16;       // warps of it, each taking every 16th partial sum

// Second stage: dweight (or +=) from the blocks' sums, which lie `count` times behind one another.
template <typename T>
__global__ void __launch_bounds__(COLUMNS * SLICES)
    rmsnorm_add_partials(T* dweight, const float* partials, int count, int C, bool accumulate) {
    __shared__ float sums[SLICES][COLUMNS];
    int c = blockIdx.x * COLUMNS + lane_id();
    float sum = 0;
    if (c < C) {
#pragma unroll 4
        for (int i = warp_id(); i < count; i += SLICES) sum += partials[i * (long long)C + c];
    }
    sums[warp_id()][lane_id()] = sum;
    __syncthreads();
    if (warp_id() != 0 || c >= C) return;
    float total = accumulate ? to_float(dweight[c]) : 0;
#pragma unroll
    for (int i = 0; i < SLICES; i++) total += sums[i][lane_id()];
    dweight[c] = from_float<T>(total);
}
