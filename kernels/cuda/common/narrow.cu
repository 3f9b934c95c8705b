// What int32 does not have becomes the nearest that it has: an index that was out of range stays out of range.
__global__ void as_int32(int* out, const long long* x, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= n) return;
    long long value = x[i];
    out[i] = value > 2147483647LL ? 2147483647 : value < -2147483648LL ? -2147483647 - 1 : (int)value;
}
