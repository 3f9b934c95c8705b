#include "common/gelu.cuh"
#include "common/packed.cuh"
#include "common/reduce.cuh"

constexpr int THREADS = 256;

// What stands in for an epilogue that the library does not have. All but the last two pass once over what the product
// left, N neighbouring elements a thread; N divides a row.

// v (+ bias) becomes out, or becomes pre_gelu and its GELU out. v is where the product left it: in pre_gelu where that is
// wanted, else in out.
template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    finish_forward(T* out, T* pre_gelu, const T* bias, long long n, int columns) {
    const long long i = (blockIdx.x * (long long)THREADS + threadIdx.x) * N;
    if (i >= n) return;
    Packed<float, N> v = load_floats<N>((pre_gelu ? pre_gelu : out) + i);
    if (bias) {
        Packed<float, N> terms = load_floats<N>(bias + i % columns);
#pragma unroll
        for (int k = 0; k < N; k++) v[k] += terms[k];
        if (pre_gelu) store_floats(pre_gelu + i, v);
    }
    if (pre_gelu) {
#pragma unroll
        for (int k = 0; k < N; k++) v[k] = gelu(v[k]);
    }
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
