// Kernels whose traffic is known by counting on one's fingers: one block of 32 x 32 threads, or 256 threads in one row.
#define KERNEL extern "C" __global__ void
#define ARGUMENTS float *out, const float *in, unsigned *counters, int n

constexpr int TILE = 32;

KERNEL coalesced(ARGUMENTS) { out[threadIdx.x] = in[threadIdx.x]; }
KERNEL strided(ARGUMENTS) { out[threadIdx.x] = in[8 * threadIdx.x]; }
KERNEL shifted(ARGUMENTS) { out[threadIdx.x] = in[threadIdx.x + 1]; }
KERNEL broadcast(ARGUMENTS) { out[threadIdx.x] = in[n - 1]; }
KERNEL vectors(ARGUMENTS) { reinterpret_cast<float4*>(out)[threadIdx.x] = reinterpret_cast<const float4*>(in)[threadIdx.x]; }
KERNEL loop(ARGUMENTS) {
    float sum = 0;
#pragma unroll 1
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += in[i];
    out[threadIdx.x] = sum;
}
KERNEL atomics(ARGUMENTS) { atomicAdd(counters + threadIdx.x, 1); }

template <int WIDTH>
__device__ void transpose(float* out, const float* in) {
    __shared__ float tile[TILE][WIDTH];
    int x = threadIdx.x % TILE, y = threadIdx.x / TILE;
    tile[y][x] = in[threadIdx.x];  // rows in
    __syncthreads();
    out[threadIdx.x] = tile[x][y];  // columns out
}
KERNEL conflicted(ARGUMENTS) { transpose<TILE>(out, in); }
KERNEL padded(ARGUMENTS) { transpose<TILE + 1>(out, in); }
KERNEL shared_vectors(ARGUMENTS) {
    __shared__ float4 buffer[256];
    buffer[threadIdx.x] = reinterpret_cast<const float4*>(in)[threadIdx.x];
    __syncwarp();
    reinterpret_cast<float4*>(out)[threadIdx.x] = buffer[threadIdx.x];
}
