#include "common/layernorm.cuh"

// A row is one warp's, of a block of ROWS warps, or a whole block's.
template <typename T, int C, int N, int PACKS, int THREADS, int ROWS>
__global__ void __launch_bounds__(THREADS * ROWS)
    layernorm_forward(T* out, float* mean, float* rstd, const T* x, const T* __restrict__ weight,
                      const T* __restrict__ bias, long long rows, float eps) {
    long long r = blockIdx.x * (long long)ROWS + threadIdx.x / THREADS;
    if (r >= rows) return;  // a whole warp, and only where a row is one warp's: no barrier is ahead
    Packed<float, N> values[PACKS];
    for_packs<N, PACKS, THREADS>(C, [&](int p, int i) { values[p] = load_floats_once<N>(x + r * C + i); });
    normalise_row<T, C, N, PACKS, THREADS>(out + r * C, mean + r, rstd + r, values, weight, bias, eps);
}

// to[i] = the sum of `values` over a block's ROWS groups of THREADS threads, for each element i of a row.
template <int C, int N, int PACKS, int THREADS, int ROWS>
__device__ void add_groups(float* to, const Packed<float, N> (&values)[PACKS]) {
    if constexpr (ROWS == 1) {
        for_packs<N, PACKS, THREADS>(C, [&](int p, int i) { store_floats(to + i, values[p]); });
    } else {
        __shared__ alignas(PACK_BYTES) float all[ROWS][PACKS * THREADS * N];
        float* mine = all[threadIdx.x / THREADS];
        for_packs<N, PACKS, THREADS>(C, [&](int p, int i) { store<N>(mine + i, values[p]); });
        __syncthreads();
        for (int i = threadIdx.x; i < C; i += THREADS * ROWS) {
            float sum = 0;
#pragma unroll
            for (int g = 0; g < ROWS; g++) sum += all[g][i];
            to[i] = sum;
        }
        __syncthreads();  // the next call writes `all` again
    }
}

// norm = (x - mean) * rstd, dnorm = dout * weight
// dx = rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm)) + dresidual, each mean over C
//
// A block stays and takes every gridDim.x-th group of ROWS rows; each thread keeps the sums for its columns of dweight
// and dbias in registers until the end. `partials` is gridDim.x times (dweight, dbias), 2 C floats a block.
template <typename T, int C, int N, int PACKS, int THREADS, int ROWS, int BLOCKS_PER_SM>
__global__ void __launch_bounds__(THREADS * ROWS, BLOCKS_PER_SM)
    layernorm_backward_rows(T* dx, float* partials, const T* dout, const T* dresidual, const T* x,
                            const T* weight, const float* mean, const float* rstd, long long rows) {
    constexpr float SHARE = 1.0f / C;  // of an element in a mean
    int group = threadIdx.x / THREADS;
    Packed<float, N> weight_sum[PACKS], bias_sum[PACKS];
#pragma unroll
    for (int p = 0; p < PACKS; p++) weight_sum[p] = bias_sum[p] = filled<N>(0);

    for (long long r = blockIdx.x * (long long)ROWS + group; r < rows; r += gridDim.x * (long long)ROWS) {
        // Everything the row needs is asked for before anything is used.
        Packed<T, N> x_row[PACKS], dout_row[PACKS], dresidual_row[PACKS];
        for_packs<N, PACKS, THREADS>(C, [&](int p, int i) {
            x_row[p] = load_once<N>(x + r * C + i);
            dout_row[p] = load_once<N>(dout + r * C + i);
            if (dresidual) dresidual_row[p] = load_once<N>(dresidual + r * C + i);
        });
        float m = mean[r], s = rstd[r];

        float sum = 0, product = 0;
        for_packs<N, PACKS, THREADS>(C, [&](int p, int i) {
            Packed<float, N> value = to_floats(x_row[p]), dy = to_floats(dout_row[p]), w = load_floats<N>(weight + i);
#pragma unroll
            for (int k = 0; k < N; k++) {
                float norm = (value[k] - m) * s, dnorm = dy[k] * w[k];
                sum += dnorm;
                product += dnorm * norm;
                weight_sum[p][k] += dy[k] * norm;
                bias_sum[p][k] += dy[k];
            }
        });
        float dnorm_mean = block_sum<THREADS>(sum) * SHARE, dnorm_norm_mean = block_sum<THREADS>(product) * SHARE;

        for_packs<N, PACKS, THREADS>(C, [&](int p, int i) {
            Packed<float, N> value = to_floats(x_row[p]), dy = to_floats(dout_row[p]), w = load_floats<N>(weight + i);
            Packed<float, N> y = dresidual ? to_floats(dresidual_row[p]) : filled<N>(0);
#pragma unroll
            for (int k = 0; k < N; k++) {
                float norm = (value[k] - m) * s, dnorm = dy[k] * w[k];
                y[k] += s * (dnorm - dnorm_mean - norm * dnorm_norm_mean);
            }
            store_floats(dx + r * C + i, y);
        });
    }

    float* partial = partials + blockIdx.x * 2LL * C;
    add_groups<C, N, PACKS, THREADS, ROWS>(partial, weight_sum);
    add_groups<C, N, PACKS, THREADS, ROWS>(partial + C, bias_sum);
}

constexpr int COLUMNS = 32;      // of a block of the second stage: a warp's lanes, so that it reads 128 bytes
constexpr int SLICES = 16;       // warps of it, each taking every 16th partial sum

// Second stage: dweight and dbias (or +=) from the blocks' sums, which lie `count` times behind one another.
template <typename T>
__global__ void __launch_bounds__(COLUMNS * SLICES)
    layernorm_add_partials(T* dweight, T* dbias, const float* partials, int count, int C, bool accumulate) {
    __shared__ float sums[SLICES][COLUMNS];
    int c = blockIdx.x * COLUMNS + lane_id();  // of 2 C: dbias lies behind dweight
    float sum = 0;
    if (c < 2 * C) {
#pragma unroll 4
        for (int i = warp_id(); i < count; i += SLICES) sum += partials[i * 2LL * C + c];
    }
    sums[warp_id()][lane_id()] = sum;
    __syncthreads();
    if (warp_id() != 0 || c >= 2 * C) return;
    T* gradient = c < C ? dweight + c : dbias + (c - C);
    float total = accumulate ? to_float(*gradient) : 0;
#pragma unroll
    for (int i = 0; i < SLICES; i++) total += sums[i][lane_id()];
    *gradient = from_float<T>(total);
}
