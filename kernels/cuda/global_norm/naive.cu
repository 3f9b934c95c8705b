#include "common/types.cuh"

// Adds to sums[thread] the squares of one tensor's elements thread, thread + threads, thread + 2 threads, …; with the
// first tensor the sums begin.
template <typename T>
__global__ void add_squares(double* sums, const T* grad, long long n, bool first) {
    int thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
    double sum = first ? 0 : sums[thread];
    for (long long i = thread; i < n; i += threads) sum += double(to_float(grad[i])) * to_float(grad[i]);
    sums[thread] = sum;
}

// One thread adds up what all threads found.
__global__ void norm_of_sums(float* norm, const double* sums, int count) {
    double total = 0;
    for (int i = 0; i < count; i++) total += sums[i];
    *norm = sqrt(total);
}
