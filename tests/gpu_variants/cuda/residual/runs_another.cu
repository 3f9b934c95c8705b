template <typename T> __global__ void residual_forward(T* out, const T* a, const T* b, long long n);
