#include "common/layernorm.cuh"
#include "common/rows_ahead.cuh"

// A row is one warp's, of a block of ROWS warps, or a whole block's; the next one is ROWS times as many rows on as there
// are blocks, of which BLOCKS share a multiprocessor.
template <typename T, int C, int N, int PACKS, int THREADS, int ROWS, int BLOCKS, int AHEAD>
__global__ void __launch_bounds__(THREADS* ROWS, BLOCKS)
    layernorm_forward(T* out, float* mean, float* rstd, const T* x, const T* __restrict__ weight,
                      const T* __restrict__ bias, long long rows, float eps) {
    extern __shared__ uint4 dynamic[];  // AHEAD rows a group of threads
    const long long step = gridDim.x * (long long)ROWS;
    const long long first = blockIdx.x * (long long)ROWS + threadIdx.x / THREADS;
    RowsAhead<T, C, N, PACKS, THREADS, ROWS, AHEAD> ahead = {
        x, rows, step, reinterpret_cast<Packed<T, N>*>(dynamic) + threadIdx.x};
    ahead.start(first);
    for (long long r = first; r < rows; r += step) {
        Packed<float, N> values[PACKS];
        ahead.take(r, values);
        normalise_row<T, C, N, PACKS, THREADS>(out + r * C, mean + r, rstd + r, values, weight, bias, eps);
    }
}
