// Loops that go on for ever and change memory as they do, so that nobody can call them a deadlock.
#define KERNEL extern "C" __global__ void
#define ARGUMENTS float *out, const float *in, unsigned *counters, int n

KERNEL for_ever_with_a_barrier(ARGUMENTS) {
    __shared__ float buffer[256];
    buffer[threadIdx.x] = 0;
    for (unsigned i = 0; n >= 0; i++) {
        __syncthreads();
        buffer[(threadIdx.x + i) % 256] += 1;
        if (buffer[(threadIdx.x + i) % 256] < 0) n = -1;
    }
    out[0] = buffer[0];
}
KERNEL for_ever_without_one(ARGUMENTS) {
    if (threadIdx.x >= 64 || blockIdx.x) return;
    volatile unsigned* counter = counters + threadIdx.x % 64;
    for (unsigned i = 0; n >= 0; i++) *counter = i;
}
