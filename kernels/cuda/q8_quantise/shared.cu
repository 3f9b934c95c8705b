#include "common/bytes.cuh"
#include "common/packed.cuh"
#include "common/reduce.cuh"

// scale = max|x| / 127 of each group along a row (1 of zeros, NaN where one is not finite); q = x / scale, to even. A
// group lies in the registers of LANES neighbouring lanes, PACKS packs of N in each.
template <typename T, int N, int PACKS, int LANES, int THREADS>
__global__ void __launch_bounds__(THREADS)
    q8_quantise_forward(signed char* q, float* scales, const T* x, long long groups, int K, int G, int KG) {
    const long long i = (blockIdx.x * (long long)THREADS + threadIdx.x) / LANES;
    const int lane = threadIdx.x % LANES;
    const int start = i % KG * G, count = i < groups ? min(G, K - start) : 0;
    const long long at = i / KG * K + start;
    Packed<float, N> values[PACKS];
    unsigned largest = 0;  // as bits, which grow with the value: a NaN's are above infinity's
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int k = (p * LANES + lane) * N;
        values[p] = k < count ? load_floats_once<N>(x + at + k) : filled<N>(0);
#pragma unroll
        for (int e = 0; e < N; e++) largest = max(largest, __float_as_uint(values[p][e]) & 0x7fffffffu);
    }
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2)
        largest = max(largest, __shfl_xor_sync(ALL_LANES, largest, distance));
    const bool finite = largest < 0x7f800000u;
    const float scale = !finite ? __uint_as_float(0x7fc00000u) : largest ? __uint_as_float(largest) / 127 : 1;
    if (lane == 0 && count > 0) scales[i] = scale;
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int k = (p * LANES + lane) * N;
        if (k >= count) continue;
        Int8s<N> bytes;
#pragma unroll
        for (int w = 0; w < Int8s<N>::WORDS; w++) {
            unsigned word = 0;
#pragma unroll
            for (int e = 4 * w; e < 4 * w + 4 && e < N; e++) {
                const int number = finite ? __float2int_rn(values[p][e] / scale) : 0;
                word |= (number & 0xffu) << (8 * (e % 4));
            }
            bytes.word[w] = word;
        }
        store_int8s<N>(q + at + k, bytes);
    }
}
