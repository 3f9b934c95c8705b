// Loads that race with a store, and whose value is of use to nobody; in those with a `// BUG` it is of use.
// 64 threads; out is given as in, the upper half of the block holds the same elements as the lower.

#define KERNEL extern "C" __global__ void
#define ARGUMENTS float *out, const float *in, unsigned *counters, int n

__device__ int mine() { return threadIdx.x % 32; }
__device__ bool stores() { return threadIdx.x < 32; }
__device__ unsigned launches;
// Where it stands: the compiler leaves no load out that it takes for useless.
__device__ float load(const float* x, int i) {
    float value;
    asm volatile("ld.f32 %0, [%1];" : "=f"(value) : "l"(x + i) : "memory");
    return value;
}

KERNEL in_place(ARGUMENTS) {
    float x = load(out, mine());
    if (stores()) out[mine()] = x * 2 + 1;
}
KERNEL counts_as_well(ARGUMENTS) {
    float x = load(out, mine());
    if (threadIdx.x == 0) counters[0] = atomicAdd(&launches, 1) + 1;
    if (stores()) out[mine()] = x * 2 + 1;
}
KERNEL two_blocks(ARGUMENTS) {
    float x = load(out, mine());
    if (stores() && blockIdx.x == 0) out[mine()] = x * 2 + 1;
}
KERNEL neighbour(ARGUMENTS) {
    float x = load(out, mine()), y = load(out, (mine() + 1) % 32);  // BUG
    if (stores()) out[mine()] = x + y;
}
KERNEL largest_of_two(ARGUMENTS) {
    float x = load(out, mine()), y = load(out, (mine() + 1) % 32);  // BUG
    if (stores()) out[mine()] = fmaxf(x, y) + 1;
}
KERNEL as_a_place(ARGUMENTS) {
    float x = load(out, mine()), y = load(out, (mine() + 1) % 32);  // BUG
    if (stores()) out[mine()] = x + 1 + in[static_cast<int>(fminf(fmaxf(y, 0), 31))];
}
KERNEL by_way_of_shared(ARGUMENTS) {
    __shared__ float all[64];
    all[threadIdx.x] = load(out, mine());  // BUG
    if (stores()) out[mine()] = -3;
    __syncthreads();
    if (!stores()) out[threadIdx.x] = all[threadIdx.x];
}
KERNEL shared_in_place(ARGUMENTS) {
    __shared__ float all[32];
    if (stores()) all[mine()] = in[mine()];
    __syncthreads();
    float x = load(all, mine());  // BUG
    if (stores()) all[mine()] = x * 2 + 1;
    __syncthreads();
    if (stores()) out[mine()] = all[mine()];
}
KERNEL two_writers(ARGUMENTS) {
    float x = load(out, mine());
    out[mine()] = x * 2 + 1 + threadIdx.x;  // BUG
}
KERNEL two_writers_of_one_block(ARGUMENTS) {
    float x = load(out, mine());
    if (stores()) out[mine()] = x * 2 + 1;
    if (threadIdx.x == 40) out[0] = 7;  // BUG
}
KERNEL other_fault(ARGUMENTS) {
    float x = load(out, mine());
    if (stores()) out[mine()] = x * 2 + 1;
    if (threadIdx.x == 0) out[n] = 1;  // BUG
}
KERNEL how_often(ARGUMENTS) {
    int x = static_cast<int>(load(out, (mine() + 1) % 32));  // BUG
    unsigned sum = 0;
    for (int i = 0; i < x; i++) sum += i * i ^ sum;
    if (stores()) out[mine()] = 3;
    if (sum == 77) counters[1] = 1;
    counters[2 + threadIdx.x] = sum;
}
