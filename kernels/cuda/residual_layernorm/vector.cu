#include "common/layernorm.cuh"
#include "common/residual_row.cuh"

// residual_out = x + residual, out = (residual_out - mean) * rstd * weight + bias. What is normalised is the sum before
// it is rounded. A row is one warp's, of a block of ROWS warps, or a whole block's; the next one is ROWS times as many
// rows on as there are blocks, of which BLOCKS share a multiprocessor.
template <typename T, int C, int N, int PACKS, int THREADS, int ROWS, int BLOCKS>
__global__ void __launch_bounds__(THREADS* ROWS, BLOCKS)
    residual_layernorm_forward(T* residual_out, T* out, float* mean, float* rstd, const T* x, const T* residual,
                               const T* __restrict__ weight, const T* __restrict__ bias, long long rows, float eps) {
    const long long step = gridDim.x * (long long)ROWS;
    ResidualRow<T, C, N, PACKS, THREADS> row;
    auto ask = [&](long long r) {
        if (r < rows) row.ask(x + r * C, residual + r * C);
    };
    long long r = blockIdx.x * (long long)ROWS + threadIdx.x / THREADS;
    ask(r);
    for (; r < rows; r += step) {
        Packed<float, N> sum[PACKS];
        row.add(sum, residual_out + r * C);
        ask(r + step);
        normalise_row<T, C, N, PACKS, THREADS>(out + r * C, mean + r, rstd + r, sum, weight, bias, eps);
    }
}
