// What published kernels use now and then, one kernel for each; test_rare.py knows what comes out. Each has the usual
// arguments: out and in have n floats, counters n words. A block has 64 threads.
#include <cuda_fp8.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define KERNEL extern "C" __global__ void
#define ARGUMENTS float *out, const float *in, unsigned *counters, int n

__device__ int opaque(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// --- calls ----------------------------------------------------------------------------------------------------------

struct Pair {
    float at[3];
    int n;
};
__device__ __noinline__ int factorial(int n) { return n <= 1 ? 1 : n * factorial(n - 1); }
__device__ __noinline__ Pair changed(Pair pair, float x) {
    pair.at[pair.n % 3] += x;
    pair.n++;
    return pair;
}
__device__ __noinline__ void fill(float* a, int n) {
    float own[4];
    for (int i = 0; i < 4; i++) own[i] = static_cast<float>(opaque(i));
    for (int i = 0; i < n; i++) a[i] = own[opaque(i) % 4] + 1;
}
__device__ __noinline__ float neighbour(float x) {
    __shared__ float buffer[64];
    buffer[threadIdx.x] = x;
    __syncthreads();
    return buffer[63 - threadIdx.x];
}
typedef float (*Function)(float);
__device__ float squared(float x) { return x * x; }
__device__ float cubed(float x) { return x * x * x; }
__device__ Function table[2] = {squared, cubed};
__device__ __noinline__ void leave(int n) {
    if (n > 40) asm volatile("exit;");
}
struct Shape {
    __device__ virtual float area(float x) const = 0;
};
struct Square : Shape {
    __device__ float area(float x) const override { return x * x; }
};
struct Circle : Shape {
    __device__ float area(float x) const override { return 3 * x * x; }
};

KERNEL recursion(ARGUMENTS) { out[threadIdx.x] = static_cast<float>(factorial(threadIdx.x % 8)); }
KERNEL structs(ARGUMENTS) {
    Pair pair{{1, 2, 3}, static_cast<int>(threadIdx.x)};
    pair = changed(changed(pair, in[threadIdx.x]), 10);
    out[threadIdx.x] = pair.at[0] + 100 * pair.at[1] + 10000 * pair.at[2] + static_cast<float>(pair.n) * 1000000;
}
KERNEL callers_locals(ARGUMENTS) {
    float buffer[8];
    fill(buffer, 8);
    out[threadIdx.x] = buffer[opaque(threadIdx.x) % 8];
}
KERNEL shared_in_a_function(ARGUMENTS) { out[threadIdx.x] = neighbour(in[threadIdx.x]); }
KERNEL function_pointers(ARGUMENTS) {
    Function f = table[opaque(threadIdx.x) % 2];
    out[threadIdx.x] = f(in[threadIdx.x]);
}
KERNEL virtual_functions(ARGUMENTS) {
    Square square;
    Circle circle;
    const Shape* shape = opaque(threadIdx.x) % 2 ? static_cast<const Shape*>(&square) : &circle;
    out[threadIdx.x] = shape->area(in[threadIdx.x]);
}
KERNEL exit_in_a_function(ARGUMENTS) {
    out[threadIdx.x] = 1;
    leave(threadIdx.x);
    out[threadIdx.x] = 2;
}
KERNEL callers_locals_overrun(ARGUMENTS) {
    float buffer[8];
    fill(buffer, opaque(9));
    out[threadIdx.x] = buffer[opaque(threadIdx.x) % 8];
}
KERNEL no_function(ARGUMENTS) {
    Function f = reinterpret_cast<Function>(static_cast<unsigned long long>(opaque(64)));
    out[threadIdx.x] = f(1);
}
KERNEL doubles(ARGUMENTS) {
    double x = in[threadIdx.x] / 3.0;
    out[threadIdx.x] = static_cast<float>(sin(x) + pow(fabs(x) + 0.5, 1.7) + exp(-x * x) + log(fabs(x) + 1) + erf(x) + tanh(x));
}
KERNEL prints(ARGUMENTS) {
    if (threadIdx.x == 3) out[0] = static_cast<float>(printf("%d %5.2f %s|%lld %x%%\n", -7, 2.5, "text", 1ll << 40, 255));
}
KERNEL heap(ARGUMENTS) {
    float* own = static_cast<float*>(malloc(4 * sizeof(float)));
    for (int i = 0; i < 4; i++) own[i] = in[threadIdx.x] * static_cast<float>(i);
    out[threadIdx.x] = own[opaque(3)];
    free(own);
}
KERNEL heap_overrun(ARGUMENTS) {
    float* own = static_cast<float*>(malloc(4 * sizeof(float)));
    own[opaque(4)] = 1;
}
KERNEL heap_after_free(ARGUMENTS) {
    float* own = static_cast<float*>(malloc(4 * sizeof(float)));
    own[0] = 1;
    free(own);
    out[threadIdx.x] = own[opaque(0)];
}
KERNEL freed_twice(ARGUMENTS) {
    void* own = malloc(16);
    free(own);
    free(own);
}

// --- numbers --------------------------------------------------------------------------------------------------------

KERNEL wide_integers(ARGUMENTS) {
    unsigned __int128 x = static_cast<unsigned __int128>(0xfedcba9876543210ull + threadIdx.x) * 0x123456789abcdefull;
    x += static_cast<unsigned __int128>(threadIdx.x) << 100;
    x -= 0xffffffffffffffffull;
    __int128 y = -static_cast<__int128>(x >> 1) / (threadIdx.x + 3);
    counters[threadIdx.x] = static_cast<unsigned>(x >> 64) ^ static_cast<unsigned>(y >> 40);
}
KERNEL carries(ARGUMENTS) {
    unsigned a = 0xfffffff0u + threadIdx.x, b = opaque(0x20), low, high, d;
    asm("{ add.cc.u32 %0, %3, %4; addc.u32 %1, %3, 5; sub.cc.u32 %2, %4, %3; subc.cc.u32 %2, %2, 1; subc.u32 %2, %2, %2; }"
        : "=&r"(low), "=&r"(high), "=&r"(d) : "r"(a), "r"(b));
    unsigned e, f, g;
    asm("{ mad.lo.cc.u32 %0, %3, %4, %3; madc.hi.cc.u32 %1, %3, %4, %4; madc.lo.u32 %2, %3, %3, 0; mad.hi.cc.u32 %2, %2, %4, %2; "
        "addc.cc.u32 %2, %2, 0; madc.lo.cc.u32 %2, %2, 3, 7; madc.hi.u32 %2, %3, %2, 1; }"
        : "=&r"(e), "=&r"(f), "=&r"(g) : "r"(a), "r"(b));
    counters[threadIdx.x] = low ^ high * 3 ^ d * 5 ^ e * 7 ^ f * 11 ^ g * 13;
}
KERNEL bytes_dotted(ARGUMENTS) {
    unsigned a = 0x80ff7f01u * (threadIdx.x + 1), b = 0x7f80fe03u + threadIdx.x;
    int c = __dp4a(static_cast<int>(a), static_cast<int>(b), 5);
    unsigned d = __dp4a(a, b, 7u);
    int e = __dp2a_lo(static_cast<int>(a), static_cast<int>(b), 1), f = __dp2a_hi(static_cast<int>(a), static_cast<int>(b), 2);
    unsigned s = __usad(a, b, 9u), m;
    int t;
    asm("mul24.lo.u32 %0, %2, %3; mul24.lo.s32 %1, %2, %3;" : "=r"(m), "=r"(t) : "r"(a), "r"(b));
    counters[threadIdx.x] = static_cast<unsigned>(c) ^ d * 3 ^ static_cast<unsigned>(e) * 5 ^ static_cast<unsigned>(f) * 7 ^ s * 11 ^ m * 13 ^ static_cast<unsigned>(t) * 17;
}
KERNEL eight_bits(ARGUMENTS) {
    __nv_fp8_e4m3 a(in[threadIdx.x] * 7.3f);
    __nv_fp8_e5m2 b(in[threadIdx.x] * 1000.7f);
    __nv_fp8x2_storage_t c = __nv_cvt_halfraw2_to_fp8x2(__half2_raw(__floats2half2_rn(in[threadIdx.x], 0.3f)), __NV_SATFINITE, __NV_E4M3);
    out[threadIdx.x] = static_cast<float>(a);
    out[threadIdx.x + 64] = static_cast<float>(b);
    __half2 both(__nv_cvt_fp8x2_to_halfraw2(c, __NV_E4M3));
    out[threadIdx.x + 128] = __low2float(both) + 100 * __high2float(both);
}
KERNEL directed(ARGUMENTS) {
    float x = in[threadIdx.x] + 9.3f;
    out[threadIdx.x] = __fdiv_ru(1.7f, x) - __fdiv_rd(1.7f, x);
    out[threadIdx.x + 64] = __fsqrt_ru(x) - __fsqrt_rd(x);
    out[threadIdx.x + 128] = __frcp_ru(x) - __frcp_rz(x);
}

// What the narrow floats' headers write as PTX: rounded maths, comparisons into a float, directed conversions. 16 threads.
#define PUT(i, value) out[16 * (i) + threadIdx.x] = (value)
KERNEL narrow(ARGUMENTS) {
    if (threadIdx.x >= 16) return;
    float x = in[threadIdx.x] / 8 + 0.3f;
    __half h = __float2half(x), low;
    __nv_bfloat16 b = __float2bfloat16(x), other;
    __half2 hh = __halves2half2(h, __float2half(2 * x)), pair;
    __nv_bfloat162 bb = __halves2bfloat162(b, __float2bfloat16(2 * x)), wide;
    asm("tanh.approx.f16 %0, %1;" : "=h"(*(unsigned short*)&low) : "h"(*(unsigned short*)&h));
    asm("tanh.approx.bf16 %0, %1;" : "=h"(*(unsigned short*)&other) : "h"(*(unsigned short*)&b));
    asm("tanh.approx.f16x2 %0, %1;" : "=r"(*(unsigned*)&pair) : "r"(*(unsigned*)&hh));
    asm("tanh.approx.bf16x2 %0, %1;" : "=r"(*(unsigned*)&wide) : "r"(*(unsigned*)&bb));
    PUT(0, __half2float(low));
    PUT(1, __bfloat162float(other));
    PUT(2, __low2float(pair) + 2 * __high2float(pair));
    PUT(3, __low2float(wide) + 2 * __high2float(wide));
    PUT(4, __half2float(__hfma_relu(h, h, __float2half(-0.25f))));
    PUT(5, __bfloat162float(__hfma_relu(b, b, __float2bfloat16(-0.25f))));
    pair = __hfma2_relu(hh, hh, __float2half2_rn(-0.25f));
    wide = __hfma2_relu(bb, bb, __float2bfloat162_rn(-0.25f));
    PUT(6, __low2float(pair) + 2 * __high2float(pair));
    PUT(7, __low2float(wide) + 2 * __high2float(wide));
    PUT(8, __half2float(hrint(h)) + 10 * __half2float(hceil(h)) + 100 * __half2float(htrunc(h)) + 1000 * __half2float(hfloor(h)));
    PUT(9, __bfloat162float(hrint(b)) + 10 * __bfloat162float(hceil(b)) + 100 * __bfloat162float(htrunc(b)) + 1000 * __bfloat162float(hfloor(b)));
    PUT(10, __half2float(__float2half_ru(x / 3)) - __half2float(__float2half_rd(x / 3)));
    PUT(11, __bfloat162float(__float2bfloat16_ru(x / 3)) - __bfloat162float(__float2bfloat16_rd(x / 3)));
    int odd = (threadIdx.x % 2 ? 1 : -1) * (4097 + 4 * (int)threadIdx.x);
    PUT(12, __half2float(__int2half_ru(odd)) - 4096 + 8192 * (__half2float(__int2half_rz(odd)) - 4096));
    PUT(13, __bfloat162float(__int2bfloat16_rd(odd)) + 8192 * (__bfloat162float(__int2bfloat16_rz(odd)) - 4096));
    float f;
    unsigned p, q;
    asm("set.gt.f32.f32 %0, %1, 0f3F000000;" : "=f"(f) : "f"(x));
    asm("set.lt.u32.s32 %0, %1, 7;" : "=r"(p) : "r"((int)threadIdx.x));
    asm("set.neu.s32.f16 %0, %1, %1;" : "=r"(q) : "h"(*(unsigned short*)&h));
    PUT(14, f + (p == 0xffffffffu ? 10 : p == 0 ? 0 : 1000) + (q ? 100 : 0));
    PUT(15, __low2float(__hgt2(hh, __float2half2_rn(0.5f))) + 2 * __high2float(__hgt2(hh, __float2half2_rn(0.5f))) +
            4 * __low2float(__hgt2(bb, __float2bfloat162_rn(0.5f))) + 8 * __high2float(__hgt2(bb, __float2bfloat162_rn(0.5f))));
}

// Two lanes at a time shuffle among themselves, the others of the warp wait behind it: cooperative groups' tiles do that.
KERNEL some_before_all(ARGUMENTS) {
    float x = in[threadIdx.x];
    unsigned pair = threadIdx.x % 32 / 2;
    for (unsigned turn = 0; turn < 3; turn++) {
        if (pair == turn) x += __shfl_xor_sync(3u << 2 * pair, x, 1);
        __syncwarp();
    }
    out[threadIdx.x] = x;
}
KERNEL some_beside_all(ARGUMENTS) {
    float x = in[threadIdx.x];
    if (threadIdx.x % 32 < 2) x += __shfl_xor_sync(0xffffffff, x, 1);
    else __syncwarp();
    out[threadIdx.x] = x;
}

// --- memory ---------------------------------------------------------------------------------------------------------

KERNEL vector_atomics(ARGUMENTS) {
    float a, b;
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(out), "f"(1.0f), "f"(2.0f), "f"(3.0f), "f"(4.0f) : "memory");
    asm volatile("red.relaxed.gpu.global.v2.f32.add [%0], {%1, %2};" ::"l"(out), "f"(8.0f), "f"(16.0f) : "memory");
    asm volatile("atom.global.add.v2.f32 {%0, %1}, [%2], {%3, %4};" : "=f"(a), "=f"(b) : "l"(out + 4), "f"(1.0f), "f"(2.0f) : "memory");
    asm volatile("atom.relaxed.gpu.global.v2.f32.add {%0, %1}, [%2], {%3, %4};" : "=f"(a), "=f"(b) : "l"(out + 4), "f"(1.0f), "f"(2.0f) : "memory");
    unsigned short c, d, one = 0x3c00;
    asm volatile("red.global.add.noftz.v2.f16 [%0], {%1, %1};" ::"l"(out + 8), "h"(one) : "memory");
    asm volatile("red.global.v2.f16.add.noftz [%0], {%1, %1};" ::"l"(out + 8), "h"(one) : "memory");
    asm volatile("atom.global.add.noftz.v2.f16 {%0, %1}, [%2], {%3, %3};" : "=h"(c), "=h"(d) : "l"(out + 8), "h"(one) : "memory");
    asm volatile("atom.global.v2.f16.add.noftz {%0, %1}, [%2], {%3, %3};" : "=h"(c), "=h"(d) : "l"(out + 8), "h"(one) : "memory");
}
KERNEL vector_atomic_misaligned(ARGUMENTS) {
    asm volatile("red.global.add.v2.f32 [%0], {%1, %1};" ::"l"(out + 1), "f"(1.0f) : "memory");
}
KERNEL bulk_reduction(ARGUMENTS) {
    __shared__ alignas(16) float buffer[64];
    buffer[threadIdx.x] = in[threadIdx.x];
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(buffer));
        asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], 256;" ::"l"(out), "r"(from) : "memory");
        asm volatile("cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;" ::: "memory");
    }
}

// --- groups ---------------------------------------------------------------------------------------------------------

// As cooperative_groups::this_grid().sync() does it: the driver tells where the blocks of a launch count themselves.
__device__ void grid_barrier() {
    unsigned high, low;
    asm("mov.u32 %0, %%envreg1; mov.u32 %1, %%envreg2;" : "=r"(high), "=r"(low));
    unsigned* workspace = reinterpret_cast<unsigned*>(static_cast<unsigned long long>(high) << 32 | low);
    if (!workspace) __trap();
    volatile unsigned* arrived = workspace + 1;
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned mine = blockIdx.x ? 1 : 0x80000000u - (gridDim.x - 1);
        __threadfence();
        unsigned before = atomicAdd(workspace + 1, mine);
        while (((before ^ *arrived) & 0x80000000u) == 0) {}
        __threadfence();
    }
    __syncthreads();
}
KERNEL grid_sync(ARGUMENTS) {
    out[blockIdx.x * 64 + threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x];
    grid_barrier();
    float other = out[(gridDim.x - 1 - blockIdx.x) * 64 + threadIdx.x];
    grid_barrier();
    out[blockIdx.x * 64 + threadIdx.x] = other;
}
KERNEL grid_without_sync(ARGUMENTS) {
    out[blockIdx.x * 64 + threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x];
    __syncthreads();
    out[blockIdx.x * 64 + threadIdx.x] = out[(gridDim.x - 1 - blockIdx.x) * 64 + threadIdx.x] + 1;
}

// --- wmma, as mma.h has it: the pieces of a, b and c in registers ------------------------------------------------------

template <class T>
__device__ void fill_both(T* a, T* b, const float* in) {
    for (int i = threadIdx.x; i < 512; i += 64) {
        a[i] = T(in[i % 64]);
        b[i] = T(in[(i * 7 + 3) % 64]);
    }
    __syncthreads();
}
KERNEL wmma_half(ARGUMENTS) {
    __shared__ alignas(32) __half a[512], b[512];
    __shared__ alignas(32) float sums[256];
    fill_both(a, b, in);
    if (threadIdx.x < 32) {
        unsigned pa[8], pb[8], pc[8], pd[8];
        for (int i = threadIdx.x; i < 256; i += 32) sums[i] = float(1);
        __syncwarp();
        asm volatile("wmma.load.a.sync.aligned.row.m16n16k16.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8], %9;" : "=r"(pa[0]), "=r"(pa[1]), "=r"(pa[2]), "=r"(pa[3]), "=r"(pa[4]), "=r"(pa[5]), "=r"(pa[6]), "=r"(pa[7]) : "l"(a), "r"(16) : "memory");
        asm volatile("wmma.load.b.sync.aligned.col.m16n16k16.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8], %9;" : "=r"(pb[0]), "=r"(pb[1]), "=r"(pb[2]), "=r"(pb[3]), "=r"(pb[4]), "=r"(pb[5]), "=r"(pb[6]), "=r"(pb[7]) : "l"(b), "r"(16) : "memory");
        asm volatile("wmma.load.c.sync.aligned.row.m16n16k16.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8];" : "=r"(pc[0]), "=r"(pc[1]), "=r"(pc[2]), "=r"(pc[3]), "=r"(pc[4]), "=r"(pc[5]), "=r"(pc[6]), "=r"(pc[7]) : "l"(sums) : "memory");
        asm volatile("wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11, %12, %13, %14, %15}, {%16, %17, %18, %19, %20, %21, %22, %23}, {%24, %25, %26, %27, %28, %29, %30, %31};" : "=r"(pd[0]), "=r"(pd[1]), "=r"(pd[2]), "=r"(pd[3]), "=r"(pd[4]), "=r"(pd[5]), "=r"(pd[6]), "=r"(pd[7]) : "r"(pa[0]), "r"(pa[1]), "r"(pa[2]), "r"(pa[3]), "r"(pa[4]), "r"(pa[5]), "r"(pa[6]), "r"(pa[7]), "r"(pb[0]), "r"(pb[1]), "r"(pb[2]), "r"(pb[3]), "r"(pb[4]), "r"(pb[5]), "r"(pb[6]), "r"(pb[7]), "r"(pc[0]), "r"(pc[1]), "r"(pc[2]), "r"(pc[3]), "r"(pc[4]), "r"(pc[5]), "r"(pc[6]), "r"(pc[7]));
        __syncwarp();
        asm volatile("wmma.store.d.sync.aligned.col.m16n16k16.f32 [%0], {%1, %2, %3, %4, %5, %6, %7, %8}, %9;" ::"l"(sums), "r"(pd[0]), "r"(pd[1]), "r"(pd[2]), "r"(pd[3]), "r"(pd[4]), "r"(pd[5]), "r"(pd[6]), "r"(pd[7]), "r"(16) : "memory");
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += 64) out[i] = static_cast<float>(sums[i]);
}
KERNEL wmma_half_sums(ARGUMENTS) {
    __shared__ alignas(32) __half a[512], b[512];
    __shared__ alignas(32) __half sums[256];
    fill_both(a, b, in);
    if (threadIdx.x < 32) {
        unsigned pa[8], pb[8], pc[4], pd[4];
        for (int i = threadIdx.x; i < 256; i += 32) sums[i] = __half(1);
        __syncwarp();
        asm volatile("wmma.load.a.sync.aligned.col.m16n16k16.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8], %9;" : "=r"(pa[0]), "=r"(pa[1]), "=r"(pa[2]), "=r"(pa[3]), "=r"(pa[4]), "=r"(pa[5]), "=r"(pa[6]), "=r"(pa[7]) : "l"(a), "r"(16) : "memory");
        asm volatile("wmma.load.b.sync.aligned.row.m16n16k16.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8], %9;" : "=r"(pb[0]), "=r"(pb[1]), "=r"(pb[2]), "=r"(pb[3]), "=r"(pb[4]), "=r"(pb[5]), "=r"(pb[6]), "=r"(pb[7]) : "l"(b), "r"(16) : "memory");
        asm volatile("wmma.load.c.sync.aligned.row.m16n16k16.f16 {%0, %1, %2, %3}, [%4];" : "=r"(pc[0]), "=r"(pc[1]), "=r"(pc[2]), "=r"(pc[3]) : "l"(sums) : "memory");
        asm volatile("wmma.mma.sync.aligned.col.row.m16n16k16.f16.f16 {%0, %1, %2, %3}, {%4, %5, %6, %7, %8, %9, %10, %11}, {%12, %13, %14, %15, %16, %17, %18, %19}, {%20, %21, %22, %23};" : "=r"(pd[0]), "=r"(pd[1]), "=r"(pd[2]), "=r"(pd[3]) : "r"(pa[0]), "r"(pa[1]), "r"(pa[2]), "r"(pa[3]), "r"(pa[4]), "r"(pa[5]), "r"(pa[6]), "r"(pa[7]), "r"(pb[0]), "r"(pb[1]), "r"(pb[2]), "r"(pb[3]), "r"(pb[4]), "r"(pb[5]), "r"(pb[6]), "r"(pb[7]), "r"(pc[0]), "r"(pc[1]), "r"(pc[2]), "r"(pc[3]));
        __syncwarp();
        asm volatile("wmma.store.d.sync.aligned.col.m16n16k16.f16 [%0], {%1, %2, %3, %4}, %5;" ::"l"(sums), "r"(pd[0]), "r"(pd[1]), "r"(pd[2]), "r"(pd[3]), "r"(16) : "memory");
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += 64) out[i] = static_cast<float>(sums[i]);
}
KERNEL wmma_wide(ARGUMENTS) {
    __shared__ alignas(32) __half a[512], b[512];
    __shared__ alignas(32) float sums[256];
    fill_both(a, b, in);
    if (threadIdx.x < 32) {
        unsigned pa[8], pb[8], pc[8], pd[8];
        for (int i = threadIdx.x; i < 256; i += 32) sums[i] = float(1);
        __syncwarp();
        asm volatile("wmma.load.a.sync.aligned.row.m32n8k16.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8], %9;" : "=r"(pa[0]), "=r"(pa[1]), "=r"(pa[2]), "=r"(pa[3]), "=r"(pa[4]), "=r"(pa[5]), "=r"(pa[6]), "=r"(pa[7]) : "l"(a), "r"(16) : "memory");
        asm volatile("wmma.load.b.sync.aligned.row.m32n8k16.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8], %9;" : "=r"(pb[0]), "=r"(pb[1]), "=r"(pb[2]), "=r"(pb[3]), "=r"(pb[4]), "=r"(pb[5]), "=r"(pb[6]), "=r"(pb[7]) : "l"(b), "r"(8) : "memory");
        asm volatile("wmma.load.c.sync.aligned.row.m32n8k16.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8];" : "=r"(pc[0]), "=r"(pc[1]), "=r"(pc[2]), "=r"(pc[3]), "=r"(pc[4]), "=r"(pc[5]), "=r"(pc[6]), "=r"(pc[7]) : "l"(sums) : "memory");
        asm volatile("wmma.mma.sync.aligned.row.row.m32n8k16.f32.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11, %12, %13, %14, %15}, {%16, %17, %18, %19, %20, %21, %22, %23}, {%24, %25, %26, %27, %28, %29, %30, %31};" : "=r"(pd[0]), "=r"(pd[1]), "=r"(pd[2]), "=r"(pd[3]), "=r"(pd[4]), "=r"(pd[5]), "=r"(pd[6]), "=r"(pd[7]) : "r"(pa[0]), "r"(pa[1]), "r"(pa[2]), "r"(pa[3]), "r"(pa[4]), "r"(pa[5]), "r"(pa[6]), "r"(pa[7]), "r"(pb[0]), "r"(pb[1]), "r"(pb[2]), "r"(pb[3]), "r"(pb[4]), "r"(pb[5]), "r"(pb[6]), "r"(pb[7]), "r"(pc[0]), "r"(pc[1]), "r"(pc[2]), "r"(pc[3]), "r"(pc[4]), "r"(pc[5]), "r"(pc[6]), "r"(pc[7]));
        __syncwarp();
        asm volatile("wmma.store.d.sync.aligned.col.m32n8k16.f32 [%0], {%1, %2, %3, %4, %5, %6, %7, %8}, %9;" ::"l"(sums), "r"(pd[0]), "r"(pd[1]), "r"(pd[2]), "r"(pd[3]), "r"(pd[4]), "r"(pd[5]), "r"(pd[6]), "r"(pd[7]), "r"(32) : "memory");
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += 64) out[i] = static_cast<float>(sums[i]);
}
KERNEL wmma_bf16(ARGUMENTS) {
    __shared__ alignas(32) __nv_bfloat16 a[512], b[512];
    __shared__ alignas(32) float sums[256];
    fill_both(a, b, in);
    if (threadIdx.x < 32) {
        unsigned pa[2], pb[8], pc[8], pd[8];
        for (int i = threadIdx.x; i < 256; i += 32) sums[i] = float(1);
        __syncwarp();
        asm volatile("wmma.load.a.sync.aligned.col.m8n32k16.bf16 {%0, %1}, [%2], %3;" : "=r"(pa[0]), "=r"(pa[1]) : "l"(a), "r"(8) : "memory");
        asm volatile("wmma.load.b.sync.aligned.col.m8n32k16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8], %9;" : "=r"(pb[0]), "=r"(pb[1]), "=r"(pb[2]), "=r"(pb[3]), "=r"(pb[4]), "=r"(pb[5]), "=r"(pb[6]), "=r"(pb[7]) : "l"(b), "r"(16) : "memory");
        asm volatile("wmma.load.c.sync.aligned.row.m8n32k16.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8];" : "=r"(pc[0]), "=r"(pc[1]), "=r"(pc[2]), "=r"(pc[3]), "=r"(pc[4]), "=r"(pc[5]), "=r"(pc[6]), "=r"(pc[7]) : "l"(sums) : "memory");
        asm volatile("wmma.mma.sync.aligned.col.col.m8n32k16.f32.bf16.bf16.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13, %14, %15, %16, %17}, {%18, %19, %20, %21, %22, %23, %24, %25};" : "=r"(pd[0]), "=r"(pd[1]), "=r"(pd[2]), "=r"(pd[3]), "=r"(pd[4]), "=r"(pd[5]), "=r"(pd[6]), "=r"(pd[7]) : "r"(pa[0]), "r"(pa[1]), "r"(pb[0]), "r"(pb[1]), "r"(pb[2]), "r"(pb[3]), "r"(pb[4]), "r"(pb[5]), "r"(pb[6]), "r"(pb[7]), "r"(pc[0]), "r"(pc[1]), "r"(pc[2]), "r"(pc[3]), "r"(pc[4]), "r"(pc[5]), "r"(pc[6]), "r"(pc[7]));
        __syncwarp();
        asm volatile("wmma.store.d.sync.aligned.col.m8n32k16.f32 [%0], {%1, %2, %3, %4, %5, %6, %7, %8}, %9;" ::"l"(sums), "r"(pd[0]), "r"(pd[1]), "r"(pd[2]), "r"(pd[3]), "r"(pd[4]), "r"(pd[5]), "r"(pd[6]), "r"(pd[7]), "r"(8) : "memory");
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += 64) out[i] = static_cast<float>(sums[i]);
}
KERNEL wmma_tf32(ARGUMENTS) {
    __shared__ alignas(32) float a[512], b[512];
    __shared__ alignas(32) float sums[256];
    fill_both(a, b, in);
    if (threadIdx.x < 32) {
        unsigned pa[4], pb[4], pc[8], pd[8];
        for (int i = threadIdx.x; i < 256; i += 32) sums[i] = float(1);
        __syncwarp();
        asm volatile("wmma.load.a.sync.aligned.row.m16n16k8.tf32 {%0, %1, %2, %3}, [%4], %5;" : "=r"(pa[0]), "=r"(pa[1]), "=r"(pa[2]), "=r"(pa[3]) : "l"(a), "r"(8) : "memory");
        asm volatile("wmma.load.b.sync.aligned.col.m16n16k8.tf32 {%0, %1, %2, %3}, [%4], %5;" : "=r"(pb[0]), "=r"(pb[1]), "=r"(pb[2]), "=r"(pb[3]) : "l"(b), "r"(8) : "memory");
        asm volatile("wmma.load.c.sync.aligned.row.m16n16k8.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8];" : "=r"(pc[0]), "=r"(pc[1]), "=r"(pc[2]), "=r"(pc[3]), "=r"(pc[4]), "=r"(pc[5]), "=r"(pc[6]), "=r"(pc[7]) : "l"(sums) : "memory");
        asm volatile("wmma.mma.sync.aligned.row.col.m16n16k8.f32.tf32.tf32.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11}, {%12, %13, %14, %15}, {%16, %17, %18, %19, %20, %21, %22, %23};" : "=r"(pd[0]), "=r"(pd[1]), "=r"(pd[2]), "=r"(pd[3]), "=r"(pd[4]), "=r"(pd[5]), "=r"(pd[6]), "=r"(pd[7]) : "r"(pa[0]), "r"(pa[1]), "r"(pa[2]), "r"(pa[3]), "r"(pb[0]), "r"(pb[1]), "r"(pb[2]), "r"(pb[3]), "r"(pc[0]), "r"(pc[1]), "r"(pc[2]), "r"(pc[3]), "r"(pc[4]), "r"(pc[5]), "r"(pc[6]), "r"(pc[7]));
        __syncwarp();
        asm volatile("wmma.store.d.sync.aligned.col.m16n16k8.f32 [%0], {%1, %2, %3, %4, %5, %6, %7, %8}, %9;" ::"l"(sums), "r"(pd[0]), "r"(pd[1]), "r"(pd[2]), "r"(pd[3]), "r"(pd[4]), "r"(pd[5]), "r"(pd[6]), "r"(pd[7]), "r"(16) : "memory");
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += 64) out[i] = static_cast<float>(sums[i]);
}
KERNEL wmma_bytes(ARGUMENTS) {
    __shared__ alignas(32) signed char a[512], b[512];
    __shared__ alignas(32) int sums[256];
    fill_both(a, b, in);
    if (threadIdx.x < 32) {
        unsigned pa[2], pb[2], pc[8], pd[8];
        for (int i = threadIdx.x; i < 256; i += 32) sums[i] = int(1);
        __syncwarp();
        asm volatile("wmma.load.a.sync.aligned.row.m16n16k16.s8 {%0, %1}, [%2], %3;" : "=r"(pa[0]), "=r"(pa[1]) : "l"(a), "r"(16) : "memory");
        asm volatile("wmma.load.b.sync.aligned.col.m16n16k16.s8 {%0, %1}, [%2], %3;" : "=r"(pb[0]), "=r"(pb[1]) : "l"(b), "r"(16) : "memory");
        asm volatile("wmma.load.c.sync.aligned.row.m16n16k16.s32 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8];" : "=r"(pc[0]), "=r"(pc[1]), "=r"(pc[2]), "=r"(pc[3]), "=r"(pc[4]), "=r"(pc[5]), "=r"(pc[6]), "=r"(pc[7]) : "l"(sums) : "memory");
        asm volatile("wmma.mma.sync.aligned.row.col.m16n16k16.s32.s8.s8.s32 {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9}, {%10, %11}, {%12, %13, %14, %15, %16, %17, %18, %19};" : "=r"(pd[0]), "=r"(pd[1]), "=r"(pd[2]), "=r"(pd[3]), "=r"(pd[4]), "=r"(pd[5]), "=r"(pd[6]), "=r"(pd[7]) : "r"(pa[0]), "r"(pa[1]), "r"(pb[0]), "r"(pb[1]), "r"(pc[0]), "r"(pc[1]), "r"(pc[2]), "r"(pc[3]), "r"(pc[4]), "r"(pc[5]), "r"(pc[6]), "r"(pc[7]));
        __syncwarp();
        asm volatile("wmma.store.d.sync.aligned.col.m16n16k16.s32 [%0], {%1, %2, %3, %4, %5, %6, %7, %8}, %9;" ::"l"(sums), "r"(pd[0]), "r"(pd[1]), "r"(pd[2]), "r"(pd[3]), "r"(pd[4]), "r"(pd[5]), "r"(pd[6]), "r"(pd[7]), "r"(16) : "memory");
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += 64) out[i] = static_cast<float>(sums[i]);
}
KERNEL wmma_bytes_saturated(ARGUMENTS) {
    __shared__ alignas(32) signed char a[512], b[512];
    __shared__ alignas(32) int sums[256];
    fill_both(a, b, in);
    if (threadIdx.x < 32) {
        unsigned pa[2], pb[2], pc[8], pd[8];
        for (int i = threadIdx.x; i < 256; i += 32) sums[i] = i % 2 ? 0x7ffffff0 : -0x7ffffff0;
        __syncwarp();
        asm volatile("wmma.load.a.sync.aligned.row.m16n16k16.s8 {%0, %1}, [%2], %3;" : "=r"(pa[0]), "=r"(pa[1]) : "l"(a), "r"(16) : "memory");
        asm volatile("wmma.load.b.sync.aligned.col.m16n16k16.s8 {%0, %1}, [%2], %3;" : "=r"(pb[0]), "=r"(pb[1]) : "l"(b), "r"(16) : "memory");
        asm volatile("wmma.load.c.sync.aligned.row.m16n16k16.s32 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8];" : "=r"(pc[0]), "=r"(pc[1]), "=r"(pc[2]), "=r"(pc[3]), "=r"(pc[4]), "=r"(pc[5]), "=r"(pc[6]), "=r"(pc[7]) : "l"(sums) : "memory");
        asm volatile("wmma.mma.sync.aligned.row.col.m16n16k16.s32.s8.s8.s32.satfinite {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9}, {%10, %11}, {%12, %13, %14, %15, %16, %17, %18, %19};" : "=r"(pd[0]), "=r"(pd[1]), "=r"(pd[2]), "=r"(pd[3]), "=r"(pd[4]), "=r"(pd[5]), "=r"(pd[6]), "=r"(pd[7]) : "r"(pa[0]), "r"(pa[1]), "r"(pb[0]), "r"(pb[1]), "r"(pc[0]), "r"(pc[1]), "r"(pc[2]), "r"(pc[3]), "r"(pc[4]), "r"(pc[5]), "r"(pc[6]), "r"(pc[7]));
        __syncwarp();
        asm volatile("wmma.store.d.sync.aligned.col.m16n16k16.s32 [%0], {%1, %2, %3, %4, %5, %6, %7, %8}, %9;" ::"l"(sums), "r"(pd[0]), "r"(pd[1]), "r"(pd[2]), "r"(pd[3]), "r"(pd[4]), "r"(pd[5]), "r"(pd[6]), "r"(pd[7]), "r"(16) : "memory");
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += 64) counters[i] = sums[i];
}
KERNEL wmma_doubles(ARGUMENTS) {
    __shared__ alignas(32) double a[512], b[512];
    __shared__ alignas(32) double sums[64];
    fill_both(a, b, in);
    if (threadIdx.x < 32) {
        double pa, pb, pc[2], pd[2];
        for (int i = threadIdx.x; i < 64; i += 32) sums[i] = double(1);
        __syncwarp();
        asm volatile("wmma.load.a.sync.aligned.row.m8n8k4.shared.f64 {%0}, [%1], %2;" : "=d"(pa) : "r"(unsigned(__cvta_generic_to_shared(a))), "r"(4) : "memory");
        asm volatile("wmma.load.b.sync.aligned.col.m8n8k4.f64 {%0}, [%1], %2;" : "=d"(pb) : "l"(b), "r"(4) : "memory");
        asm volatile("wmma.load.c.sync.aligned.row.m8n8k4.f64 {%0, %1}, [%2];" : "=d"(pc[0]), "=d"(pc[1]) : "l"(sums) : "memory");
        asm volatile("wmma.mma.sync.aligned.row.col.m8n8k4.rn.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%4, %5};" : "=d"(pd[0]), "=d"(pd[1]) : "d"(pa), "d"(pb), "d"(pc[0]), "d"(pc[1]));
        __syncwarp();
        asm volatile("wmma.store.d.sync.aligned.col.m8n8k4.f64 [%0], {%1, %2}, %3;" ::"l"(sums), "d"(pd[0] / 3), "d"(pd[1] / 3), "r"(8) : "memory");
    }
    __syncthreads();
    // all bits of a double: what is left after rounding to a float
    for (int i = threadIdx.x; i < 64; i += 64) out[i] = static_cast<float>(sums[i]), out[64 + i] = static_cast<float>(sums[i] - static_cast<float>(sums[i]));
}
