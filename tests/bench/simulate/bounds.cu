// Two slices of one buffer, a and b, of n floats each, b behind a; `index` holds n numbers 0 … n - 1, `table` the
// addresses of both. A block has n threads. Lines marked with `// BUG` leave their slice.
struct Pair {
    float* at[2];
    int n;
};
#define KERNEL extern "C" __global__ void
#define ARGUMENTS float *a, float *b, const long long *index, float *const *table, Pair pair, int n

__device__ int opaque(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

KERNEL one_past_the_slice(ARGUMENTS) {
    a[threadIdx.x + opaque(1)] = 1;  // BUG
}
KERNEL before_the_slice(ARGUMENTS) {
    b[static_cast<int>(threadIdx.x) - opaque(1)] = 1;  // BUG
}
KERNEL index_from_memory(ARGUMENTS) {
    a[index[threadIdx.x] + opaque(1)] = 1;  // BUG
}
KERNEL walks_past_the_slice(ARGUMENTS) {
    if (threadIdx.x) return;
    for (float* p = a; p <= a + opaque(n); p++) *p = 1;  // BUG
}
KERNEL vector_over_the_edge(ARGUMENTS) {
    if (threadIdx.x == 0) *reinterpret_cast<float4*>(a + opaque(n)) = make_float4(1, 1, 1, 1);  // BUG
}
KERNEL atomic_past_the_slice(ARGUMENTS) {
    atomicAdd(a + opaque(n), 1.0f);  // BUG
}
KERNEL each_in_its_slice(ARGUMENTS) {
    int i = threadIdx.x;
    a[i] = static_cast<float>(i);
    b[index[i]] = a[i] + 1;
}
KERNEL chosen_pointer(ARGUMENTS) {
    float* p = opaque(threadIdx.x) % 2 ? a : b;
    p[threadIdx.x] = 1;
}
KERNEL pointer_from_memory(ARGUMENTS) {
    table[1][threadIdx.x] = 1;
    table[opaque(0)][threadIdx.x] = 2;
}
KERNEL distance_from_memory(ARGUMENTS) {
    // `table` tells where both are, and so how far apart
    const long long* addresses = reinterpret_cast<const long long*>(table);
    a[(addresses[1] - addresses[0]) / 4 + threadIdx.x] = 1;
}
KERNEL distance_through_shared_memory(ARGUMENTS) {
    __shared__ long long distance[64];
    distance[threadIdx.x] = b - a;
    __syncthreads();
    a[distance[63 - threadIdx.x] + threadIdx.x] = 1;
}
KERNEL pointer_from_a_struct(ARGUMENTS) {
    pair.at[threadIdx.x % 2][threadIdx.x] = 1;
}
KERNEL distance_of_pointers(ARGUMENTS) {
    float* p = a;
    p += b - p;
    p[threadIdx.x] = 1;
}
KERNEL swapped_each_round(ARGUMENTS) {
    float *from = a, *to = b;
    for (int i = 0; i < opaque(3); i++) {
        to[threadIdx.x] = from[threadIdx.x] + 1;
        float* other = from;
        from = to, to = other;
    }
}
