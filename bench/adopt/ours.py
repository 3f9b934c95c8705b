"""CUDA kernels of ours, for what a kernel of somebody's leaves out, or has otherwise than the contract."""

TYPES = """#include <cuda_bf16.h>
#include <cuda_fp16.h>

"""  # in front of any of these
# What a norm's kernel for inference leaves out, a warp a row: the contract has it for backward.
LEFT = """__device__ double total(double x) {
    for (int k = 16; k; k /= 2) x += __shfl_xor_sync(0xffffffff, x, k);
    return x;
}
template <typename T, bool MEAN>
__global__ void statistics(const T* x, float* mean, float* rstd, int columns, float eps) {
    x += blockIdx.x * (long long)columns;
    double sum = 0, squares = 0;  // a lane sums in order, and nobody is to be blamed for how
    for (int i = threadIdx.x; MEAN && i < columns; i += 32) sum += static_cast<float>(x[i]);
    const double middle = total(sum) / columns;
    for (int i = threadIdx.x; i < columns; i += 32) {
        const double away = static_cast<float>(x[i]) - middle;
        squares += away * away;
    }
    squares = total(squares) / columns;
    if (threadIdx.x == 0 && mean) mean[blockIdx.x] = middle;
    if (threadIdx.x == 0 && rstd) rstd[blockIdx.x] = 1 / sqrt(squares + eps);
}
"""
# Of a kernel that takes K x N, as a product of two plain matrices does.
TURNED = """template <typename T>
__global__ void turned(T* out, const T* weight, int rows, int columns) {
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < (long long)rows * columns) out[i % columns * rows + i / columns] = weight[i];
}
"""
# Of a kernel that works in place: what it is to change.
COPIED = """template <typename T>
__global__ void copied(T* out, const T* x, long long n) {
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i];
}
"""
# Of an attention that is read from slices of one packed tensor: as tensors of its own, whose axes lie as it has them.
MOVED = """template <typename T>
__global__ void moved(T* out, const T* x, int second, int third, int last, long long s0, long long s1, long long s2,
                      long long n) {
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= n) return;
    const long long row = i / last, of = row / third;
    out[i] = x[of / second * s0 + of % second * s1 + row % third * s2 + i % last];
}
"""
# What an attention for inference leaves out, a warp a query.
LSE = """template <typename T>
__global__ void logsumexp(float* lse, const T* q, const T* k, int heads, int group, int size, bool causal,
                          long long q0, long long q1, long long q2, long long k0, long long k1, long long k2) {
    const int t = blockIdx.x, head = blockIdx.y % heads, sequence = blockIdx.y / heads;
    q += sequence * q0 + t * q1 + head * q2;
    k += sequence * k0 + head / group * k2;
    float top = -INFINITY, sum = 0;
    for (int s = threadIdx.x; s < (causal ? t + 1 : gridDim.x); s += 32) {
        float score = 0;
        for (int c = 0; c < size; c++) score += static_cast<float>(q[c]) * static_cast<float>(k[s * k1 + c]);
        score *= rsqrtf(size);
        const float larger = fmaxf(top, score);
        sum = sum * expf(top - larger) + expf(score - larger);
        top = larger;
    }
    float most = top;
    for (int w = 16; w; w /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, w));
    sum = sum == 0 ? 0 : sum * expf(top - most);  // a lane without keys
    for (int w = 16; w; w /= 2) sum += __shfl_xor_sync(0xffffffff, sum, w);
    if (threadIdx.x == 0) lse[(sequence * heads + head) * (long long)gridDim.x + t] = most + logf(sum);
}
"""
# What a cross entropy leaves out that keeps nothing for backward, a warp a row.
ROWS_LSE = """template <typename T>
__global__ void logsumexp(float* lse, const T* x, int columns, long long stride) {
    x += blockIdx.x * stride;
    float top = -INFINITY, sum = 0;
    for (int i = threadIdx.x; i < columns; i += 32) top = fmaxf(top, static_cast<float>(x[i]));
    for (int w = 16; w; w /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, w));
    for (int i = threadIdx.x; i < columns; i += 32) sum += expf(static_cast<float>(x[i]) - top);
    for (int w = 16; w; w /= 2) sum += __shfl_xor_sync(0xffffffff, sum, w);
    if (threadIdx.x == 0) lse[blockIdx.x] = top + logf(sum);
}
"""
# Of a kernel that goes on from what is in its scratch.
FILLED = """__global__ void filled(float* out, float value, long long n) {
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < n) out[i] = value;
}
"""
# Of an optimizer that takes gradients as they are.
SCALED = """template <typename T>
__global__ void scaled(T* out, const T* x, float by, long long n) {
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < n) out[i] = static_cast<float>(x[i]) * by;
}
"""
# What a decode attention finds in its caches: the new keys and values, at their positions.
APPENDED = (
    TYPES
    + """template <typename T>
__global__ void appended(T* keys, T* values, const T* qkv, const long long* lengths, int heads, int size,
                         int positions) {
    const int b = blockIdx.x, t = blockIdx.y, g = blockIdx.z, cached = gridDim.z;
    const long long token = b * (long long)gridDim.y + t, to = (b * (long long)cached + g) * positions + lengths[b] + t;
    const T* key = qkv + (token * (heads + 2 * cached) + heads + g) * size;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        keys[to * size + i] = key[i];
        values[to * size + i] = key[cached * size + i];
    }
}
"""
)
