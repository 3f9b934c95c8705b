#include "common/types.cuh"

// scale = max|x| / 127 of each group along a row (1 of zeros, NaN where one is not finite); q = x / scale, to even. One
// thread a group.
template <typename T>
__global__ void q8_quantise_forward(signed char* q, float* scales, const T* x, long long groups, int K, int G, int KG) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= groups) return;
    int start = i % KG * G, count = min(G, K - start);
    x += i / KG * K + start;
    q += i / KG * K + start;
    unsigned largest = 0;  // as bits, which grow with the value: a NaN's are above infinity's
    for (int k = 0; k < count; k++) largest = max(largest, __float_as_uint(to_float(x[k])) & 0x7fffffffu);
    bool finite = largest < 0x7f800000u;
    float scale = !finite ? __uint_as_float(0x7fc00000u) : largest ? __uint_as_float(largest) / 127 : 1;
    scales[i] = scale;
    for (int k = 0; k < count; k++)
        q[k] = finite ? static_cast<signed char>(__float2int_rn(to_float(x[k]) / scale)) : 0;
}
