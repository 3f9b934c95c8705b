#include "common/gelu.cuh"
#include "common/packed.cuh"
#include "common/reduce.cuh"

constexpr int THREADS = 256;

// What stands in for an epilogue that the library does not have. The first three go once over a result, N neighbouring
// elements a thread; N divides a row.

// Every row of out is the bias: what a product is then added to, so that the sum is rounded once.
template <typename T, int N>
__global__ void __launch_bounds__(THREADS) fill_rows(T* out, const T* bias, long long n, int columns) {
    const long long i = (blockIdx.x * (long long)THREADS + threadIdx.x) * N;
    if (i < n) store(out + i, load<N>(bias + i % columns));
}

// out = gelu(pre_gelu)
template <typename T, int N>
__global__ void __launch_bounds__(THREADS) gelu_of(T* out, const T* pre_gelu, long long n) {
    const long long i = (blockIdx.x * (long long)THREADS + threadIdx.x) * N;
    if (i >= n) return;
    Packed<float, N> v = load_floats<N>(pre_gelu + i);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = gelu(v[k]);
    store_floats(out + i, v);
}

// dx *= gelu'(x_pre_gelu)
template <typename T, int N>
__global__ void __launch_bounds__(THREADS) times_gelu_grad(T* dx, const T* x_pre_gelu, long long n) {
    const long long i = (blockIdx.x * (long long)THREADS + threadIdx.x) * N;
    if (i >= n) return;
    Packed<float, N> v = load_floats<N>(dx + i), x = load_floats<N>(x_pre_gelu + i);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] *= gelu_grad(x[k]);
    store_floats(dx + i, v);
}

// partials[part][column] = the sum of that part's rows of dout. A warp adds every eighth row; then the first warp adds
// the warps' sums, in order.
template <typename T>
__global__ void __launch_bounds__(THREADS)
    sum_rows(float* partials, const T* dout, int rows, int columns, int part_rows) {
    constexpr int WARPS = THREADS / WARP;
    __shared__ float parts[WARPS][WARP];
    const int column = blockIdx.x * WARP + lane_id();
    const int begin = blockIdx.y * part_rows, end = min(begin + part_rows, rows);
    float sum = 0;
    if (column < columns)
        for (int row = begin + warp_id(); row < end; row += WARPS) sum += to_float(dout[row * (long long)columns + column]);
    parts[warp_id()][lane_id()] = sum;
    __syncthreads();
    if (warp_id() == 0 && column < columns) {
        for (int w = 1; w < WARPS; w++) sum += parts[w][lane_id()];
        partials[blockIdx.y * (long long)columns + column] = sum;
    }
}

// dbias = partials[0] + … + partials[parts - 1], in order; or that added to it.
template <typename T>
__global__ void __launch_bounds__(THREADS)
    add_parts(T* dbias, const float* partials, int columns, int parts, bool accumulate) {
    const int column = blockIdx.x * THREADS + threadIdx.x;
    if (column >= columns) return;
    float sum = 0;
    for (int part = 0; part < parts; part++) sum += partials[part * (long long)columns + column];
    if (accumulate) sum += to_float(dbias[column]);
    dbias[column] = from_float<T>(sum);
}
