#include "common/residual_row.cuh"
#include "common/rmsnorm.cuh"

// residual_out = x + residual, out = residual_out * rstd * weight. What is normalised is the sum before it is
// rounded. A row is one warp's, of a block of ROWS warps, or a whole block's.
template <typename T, int C, int N, int PACKS, int THREADS, int ROWS>
__global__ void __launch_bounds__(THREADS * ROWS)
    residual_rmsnorm_forward(T* residual_out, T* out, float* rstd, const T* x, const T* residual,
                             const T* __restrict__ weight, long long rows, float eps) {
    long long r = blockIdx.x * (long long)ROWS + threadIdx.x / THREADS;
    if (r >= rows) return;  // a whole warp, and only where a row is one warp's: no barrier is ahead
    ResidualRow<T, C, N, PACKS, THREADS> row;
    row.ask(x + r * C, residual + r * C);
    Packed<float, N> sum[PACKS];
    row.add(sum, residual_out + r * C);
    scale_row<T, C, N, PACKS, THREADS>(out + r * C, rstd + r, sum, weight, eps);
}
