#include "common/layernorm.cuh"

// residual_out = x + residual, out = (residual_out - mean) * rstd * weight + bias. What is normalised is the sum before
// it is rounded. A row is one warp's, of a block of ROWS warps, or a whole block's; the next one is ROWS times as many
// rows on as there are blocks, of which BLOCKS share a multiprocessor.
template <typename T, int C, int N, int PACKS, int THREADS, int ROWS, int BLOCKS>
__global__ void __launch_bounds__(THREADS* ROWS, BLOCKS)
    residual_layernorm_forward(T* residual_out, T* out, float* mean, float* rstd, const T* x, const T* residual,
                               const T* __restrict__ weight, const T* __restrict__ bias, long long rows, float eps) {
    const long long step = gridDim.x * (long long)ROWS;
    Packed<T, N> x_row[PACKS], residual_row[PACKS];
    auto ask = [&](long long r) {
        if (r >= rows) return;
        for_packs<N, PACKS, THREADS>(C, [&](int p, int i) {
            x_row[p] = load_once<N>(x + r * C + i);
            residual_row[p] = load_once<N>(residual + r * C + i);
        });
    };
    long long r = blockIdx.x * (long long)ROWS + threadIdx.x / THREADS;
    ask(r);
    for (; r < rows; r += step) {
        Packed<float, N> sum[PACKS];
        for_packs<N, PACKS, THREADS>(C, [&](int p, int i) {
            Packed<float, N> added = to_floats(residual_row[p]);
            sum[p] = to_floats(x_row[p]);
#pragma unroll
            for (int k = 0; k < N; k++) sum[p][k] += added[k];
            store_floats(residual_out + r * C + i, sum[p]);
        });
        ask(r + step);
        normalise_row<T, C, N, PACKS, THREADS>(out + r * C, mean + r, rstd + r, sum, weight, bias, eps);
    }
}
