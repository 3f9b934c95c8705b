// Zeros over bytes, 16 of them a thread.
__global__ void zero(unsigned char* out, long long n) {
    long long first = (blockIdx.x * (long long)blockDim.x + threadIdx.x) * 16;
    if (first + 16 <= n && reinterpret_cast<unsigned long long>(out) % 16 == 0) {
        *reinterpret_cast<uint4*>(out + first) = make_uint4(0, 0, 0, 0);
        return;
    }
    for (long long i = first; i < first + 16 && i < n; i++) out[i] = 0;
}
