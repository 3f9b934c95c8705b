#include "common/types.cuh"

template <typename T> __global__ void gelu_uncompilable(T* out, const T* x, long long n) { out[0] = nothing; }
