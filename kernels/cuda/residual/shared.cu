#include "common/packed.cuh"

// out = a + b
template <typename T, int N>
__global__ void residual_forward(T* out, const T* a, const T* b, long long n) {
    long long i = (blockIdx.x * (long long)blockDim.x + threadIdx.x) * N;
    if (i + N <= n) {
        Packed<float, N> sum = load_floats_once<N>(a + i), other = load_floats_once<N>(b + i);
#pragma unroll
        for (int k = 0; k < N; k++) sum[k] += other[k];
        store_floats(out + i, sum);
    } else {
        for (; i < n; i++) out[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));  // the end of an uneven n
    }
}
