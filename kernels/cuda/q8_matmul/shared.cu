#include "common/bytes.cuh"
#include "common/reduce.cuh"
#include "common/types.cuh"

// out[M, N] = sum over groups of x_scale * scale * (dot product of the group), which is of whole numbers.

// ---- few rows of x: LANES lanes a row of weight, BYTES of it a load, against M rows of x ----------------------------

// BYTES divides G and K. A group is SHARE lanes', which add up whole numbers before anything is scaled.
template <typename T, int M, int BYTES, int SHARE, int LANES, int THREADS>
__global__ void __launch_bounds__(THREADS)
    q8_matmul_rows(T* out, const signed char* x, const float* x_scales, const signed char* weight, const float* scales,
                   int N, int K, int G, int KG) {
    const int n = (blockIdx.x * THREADS + threadIdx.x) / LANES, lane = threadIdx.x % LANES;
    const bool row = n < N;
    float sums[M] = {};
    weight += n * (long long)K;
    scales += n * (long long)KG;
#pragma unroll 2
    for (int first = 0; first < KG; first += LANES / SHARE) {
        const int g = first + lane / SHARE, stop = row ? min(K, (g + 1) * G) : 0;
        int dots[M] = {};
        for (int k = g * G + lane % SHARE * BYTES; k < stop; k += SHARE * BYTES) {
            const Int8s<BYTES> bytes = load_int8s<BYTES>(weight + k);
#pragma unroll
            for (int m = 0; m < M; m++) dots[m] = dot(bytes, load_int8s<BYTES>(x + m * (long long)K + k), dots[m]);
        }
        const bool mine = row && g < KG && lane % SHARE == 0;
        const float scale = mine ? scales[g] : 0;
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int distance = SHARE / 2; distance > 0; distance /= 2)
                dots[m] += __shfl_xor_sync(ALL_LANES, dots[m], distance);
            if (mine) sums[m] += scale * x_scales[m * KG + g] * dots[m];
        }
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int distance = LANES / 2; distance > 0; distance /= 2)
            sums[m] += __shfl_xor_sync(ALL_LANES, sums[m], distance);
        if (n < N && lane == 0) out[m * (long long)N + n] = from_float<T>(sums[m]);
    }
}

// ---- many: a tile of TILE x TILE a block, 4 x 4 a thread, through shared memory ----------------------------------------

constexpr int TILE = 64, SIDE = 16, EACH = TILE / SIDE;
constexpr int DEPTH = 64;                // bytes of a row at a time, of one group: what is beyond its end is 0
constexpr int STRIDE = DEPTH / 4 + 1;    // words: the rows that a warp reads at once lie in different banks

template <int BYTES>
__device__ void stage(int (*tile)[STRIDE], const signed char* from, int first, int rows, int K, int start, int stop) {
    for (int i = threadIdx.x; i < TILE * DEPTH / 4; i += SIDE * SIDE) {
        const int row = i / (DEPTH / 4), word = i % (DEPTH / 4), k = start + 4 * word;
        const signed char* at = from + (first + row) * (long long)K + k;
        int value = 0;
        if (first + row < rows) {
            if constexpr (BYTES >= 4) {
                if (k < stop) value = *reinterpret_cast<const int*>(at);
            } else {
#pragma unroll
                for (int b = 0; b < 4; b++)
                    if (k + b < stop) value |= (at[b] & 0xff) << (8 * b);
            }
        }
        tile[row][word] = value;
    }
}

template <typename T, int BYTES>
__global__ void __launch_bounds__(SIDE * SIDE)
    q8_matmul_tiles(T* out, const signed char* x, const float* x_scales, const signed char* weight,
                    const float* scales, int M, int N, int K, int G, int KG) {
    __shared__ int xs[TILE][STRIDE], weights[TILE][STRIDE];
    const int m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE, tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    float sums[EACH][EACH] = {};
    for (int g = 0; g < KG; g++) {
        int dots[EACH][EACH] = {};
        const int stop = min(K, (g + 1) * G);
        for (int k = g * G; k < stop; k += DEPTH) {
            stage<BYTES>(xs, x, m0, M, K, k, stop);
            stage<BYTES>(weights, weight, n0, N, K, k, stop);
            __syncthreads();
            const int words = min(DEPTH / 4, (stop - k + 3) / 4);
            for (int w = 0; w < words; w++) {
                int mine[EACH], theirs[EACH];
#pragma unroll
                for (int i = 0; i < EACH; i++) mine[i] = xs[ty + SIDE * i][w];
#pragma unroll
                for (int j = 0; j < EACH; j++) theirs[j] = weights[tx + SIDE * j][w];
#pragma unroll
                for (int i = 0; i < EACH; i++)
#pragma unroll
                    for (int j = 0; j < EACH; j++) dots[i][j] = __dp4a(mine[i], theirs[j], dots[i][j]);
            }
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int m = m0 + ty + SIDE * i;
            const float x_scale = m < M ? x_scales[m * (long long)KG + g] : 0;
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                const int n = n0 + tx + SIDE * j;
                if (m < M && n < N) sums[i][j] += x_scale * scales[n * (long long)KG + g] * dots[i][j];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            const int m = m0 + ty + SIDE * i, n = n0 + tx + SIDE * j;
            if (m < M && n < N) out[m * (long long)N + n] = from_float<T>(sums[i][j]);
        }
}
