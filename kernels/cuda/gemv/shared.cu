#include "common/packed.cuh"
#include "common/reduce.cuh"

constexpr int THREADS = 128;  // of a block
constexpr int ROWS = 4;       // of weight, a block
constexpr int WARPS = THREADS / WARP;

// The sum over a warp of each of COUNT values, a power of two: lane i gets that of value i / (WARP / COUNT). A lane
// hands half of its values to another and goes on with the sums of the others, so that COUNT - 1 exchanges do for all.
template <int COUNT>
__device__ float warp_sums(float (&values)[COUNT]) {
    static_assert(COUNT <= WARP && (COUNT & (COUNT - 1)) == 0, "a power of two, no more than lanes");
    int distance = WARP / 2;
#pragma unroll
    for (int half = COUNT / 2; half > 0; half /= 2, distance /= 2) {
        const bool upper = lane_id() & distance;
#pragma unroll
        for (int i = 0; i < half; i++) {
            float mine = upper ? values[i + half] : values[i], other = upper ? values[i] : values[i + half];
            values[i] = mine + __shfl_xor_sync(ALL_LANES, other, distance);
        }
    }
#pragma unroll
    for (; distance > 0; distance /= 2) values[0] += __shfl_xor_sync(ALL_LANES, values[0], distance);
    return values[0];
}

// out = x weight^T for M rows of x, no more than MOST, a power of two up to 8; weight has `rows` rows. N neighbouring
// elements an access.
template <typename T, int MOST, int N>
__global__ void __launch_bounds__(THREADS) gemv_forward(T* out, const T* x, const T* weight, int M, int rows, int K) {
    constexpr int COUNT = MOST * ROWS;
    const int first = blockIdx.x * ROWS;
    const T* row[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) row[r] = weight + min(first + r, rows - 1) * (long long)K;

    float sums[COUNT] = {};
#pragma unroll 2
    for (int k = threadIdx.x * N; k < K; k += THREADS * N) {
        Packed<T, N> packed[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) packed[r] = load_once<N>(row[r] + k);
        Packed<float, N> w[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) w[r] = to_floats(packed[r]);
#pragma unroll
        for (int m = 0; m < MOST; m++) {
            Packed<float, N> some = load_floats<N>(x + min(m, M - 1) * (long long)K + k);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int i = 0; i < N; i++) sums[m * ROWS + r] += w[r][i] * some[i];
        }
    }

    __shared__ float parts[WARPS][COUNT];
    const float sum = warp_sums(sums);
    if (lane_id() % (WARP / COUNT) == 0) parts[warp_id()][lane_id() / (WARP / COUNT)] = sum;
    __syncthreads();
    const int m = threadIdx.x / ROWS, r = threadIdx.x % ROWS;
    if (m >= M || first + r >= rows) return;
    float total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += parts[w][threadIdx.x];
    out[m * (long long)rows + first + r] = from_float<T>(total);
}
