// One small kernel for each of Hopper's instructions: mbarriers, bulk and tensor copies, wgmma. A block has 128 threads.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/async_copy.cuh"
#include "common/hopper.cuh"

#define KERNEL extern "C" __global__ void
constexpr int THREADS = 128;

// --- mbarrier ---------------------------------------------------------------------------------------------------------

__device__ bool is_complete(Barrier* barrier, int parity) {  // without waiting
    int complete;
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}"
                 : "=r"(complete) : "r"(shared_address(barrier)), "r"(parity) : "memory");
    return complete;
}

// One thread makes a barrier for three arrivals and goes through two phases; `out` gets what the tests answer.
KERNEL barrier_phases(unsigned* out) {
    __shared__ Barrier barrier;
    if (threadIdx.x) return;
    unsigned address = shared_address(&barrier);
    unsigned long long state, later;
    int answers[8];
    make_barrier(&barrier, 3);
    answers[0] = is_complete(&barrier, 0);
    answers[1] = is_complete(&barrier, 1);  // the phase before the first is complete
    asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1], 2;" : "=l"(state) : "r"(address) : "memory");
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.shared.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}"
                 : "=r"(answers[2]) : "r"(address), "l"(state) : "memory");
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 %0, [%1];" : "=l"(later) : "r"(address) : "memory");
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.acquire.cta.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}"
                 : "=r"(answers[3]) : "r"(address), "l"(later) : "memory");
    answers[4] = is_complete(&barrier, 1);  // the second phase is not
    asm volatile("mbarrier.arrive.b64 %0, [%1], 3;" : "=l"(state) : "l"(&barrier) : "memory");
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.b64 p, [%1], %2, 1000;\nselp.b32 %0, 1, 0, p;\n}"
                 : "=r"(answers[5]) : "l"(&barrier), "l"(state) : "memory");
    answers[6] = is_complete(&barrier, 1);
    answers[7] = is_complete(&barrier, 0);
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(address) : "memory");
    make_barrier(&barrier, 1);  // allowed again
    for (int i = 0; i < 8; i++) out[i] = answers[i];
}

// All threads arrive; each then reads what another wrote.
KERNEL barrier_orders_memory(unsigned* out, const unsigned* in) {
    __shared__ Barrier barrier;
    __shared__ unsigned words[THREADS];
    int t = threadIdx.x;
    if (t == 0) {
        make_barrier(&barrier, THREADS);
        fence_barriers();
    }
    __syncthreads();
    words[t] = in[t];
    arrive(&barrier);
    wait_phase(&barrier, 0);
    out[t] = words[THREADS - 1 - t];
}

// cp.async, whose completion arrives at the barrier: NOINC says that the arrivals were counted when it was made.
template <bool NOINC>
__global__ void copies_arrive(unsigned* out, const unsigned* in) {
    __shared__ Barrier barrier;
    __shared__ unsigned words[THREADS];
    int t = threadIdx.x;
    if (t == 0) make_barrier(&barrier, THREADS);
    __syncthreads();
    copy_async<4>(&words[t], in + t);
    if constexpr (NOINC) {
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(&barrier)) : "memory");
    } else {
        asm volatile("cp.async.mbarrier.arrive.shared::cta.b64 [%0];" ::"r"(shared_address(&barrier)) : "memory");
        arrive(&barrier);
    }
    wait_phase(&barrier, 0);
    out[t] = NOINC ? words[THREADS - 1 - t] : 0;
    if constexpr (!NOINC) {  // the copy's own arrival may come before or after the thread's
        asm volatile("cp.async.wait_all;" ::: "memory");
        __syncthreads();
        out[t] = words[THREADS - 1 - t];
    }
}

// --- tiles ------------------------------------------------------------------------------------------------------------

extern __shared__ __align__(1024) unsigned char shared[];

__device__ void copy_out(unsigned* out, int bytes) {
    for (int i = threadIdx.x; i < bytes / 4; i += THREADS) out[i] = reinterpret_cast<unsigned*>(shared)[i];
}
__device__ void copy_in(const unsigned* in, int bytes) {
    for (int i = threadIdx.x; i < bytes / 4; i += THREADS) reinterpret_cast<unsigned*>(shared)[i] = in[i];
    fence_shared();
    __syncthreads();
}

// Shared memory as TMA leaves it.
template <int AXES>
__global__ void tile_in(unsigned* out, const __grid_constant__ TensorMap map, int x, int y, int z, int bytes) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) {
        prefetch(&map);
        make_barrier(&barrier, 1);
        fence_barriers();
        arrive_expecting(&barrier, bytes);
        if constexpr (AXES == 2) {
            load_tile(shared, &map, x, y, &barrier);
        } else if constexpr (AXES == 5) {
            asm volatile(
                "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %4, %4}], [%5];" ::"r"(
                    shared_address(shared)), "l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_address(&barrier)) : "memory");
        } else {
            asm volatile(
                "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(
                    shared_address(shared)), "l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_address(&barrier)) : "memory");
        }
    }
    __syncthreads();
    wait_phase(&barrier, 0);
    copy_out(out, bytes);
}

template <int AXES>
__global__ void tile_out(const unsigned* in, const __grid_constant__ TensorMap map, int x, int y, int z, int bytes) {
    copy_in(in, bytes);
    if (threadIdx.x == 0) {
        if constexpr (AXES == 2) {
            store_tile(&map, x, y, shared);
        } else {
            asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(&map), "r"(x),
                         "r"(y), "r"(z), "r"(shared_address(shared)) : "memory");
        }
        close_stores();
        wait_stores<0>();
    }
}

// A tile that is added to what is there.
KERNEL tile_added(const unsigned* in, const __grid_constant__ TensorMap map, int x, int y, int z, int bytes) {
    copy_in(in, bytes);
    if (threadIdx.x == 0) {
        asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(x),
                     "r"(y), "r"(shared_address(shared)) : "memory");
        close_stores();
        wait_stores<0>();
    }
}

// Linear copies in and out again, by way of shared memory; the bytes are announced apart from the arrival.
template <bool FENCED>
__device__ void bulk_round_of(unsigned* out, const unsigned* in, int bytes) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) {
        make_barrier(&barrier, 1);
        if (FENCED) fence_barriers();
        asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                         shared_address(shared)), "l"(in), "r"(bytes), "r"(shared_address(&barrier)) : "memory");
        arrive(&barrier);
        wait_phase(&barrier, 0);
        asm volatile("fence.proxy.async.global;" ::: "memory");
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(out), "r"(shared_address(shared)), "r"(bytes) : "memory");
        close_stores();
        wait_stores_read<0>();
    }
}
KERNEL bulk_round(unsigned* out, const unsigned* in, int bytes) { bulk_round_of<true>(out, in, bytes); }
KERNEL bulk_round_unfenced(unsigned* out, const unsigned* in, int bytes) { bulk_round_of<false>(out, in, bytes); }

// --- wgmma: shared memory is filled from `in`; the descriptors come without their address -------------------------------

// `from_b` is where B begins. Sums are first set, then added to: the answer is twice the product. Registers of thread t
// are words t + 128 r of `out`.
template <typename T, int N, bool TRANSPOSED_A, bool TRANSPOSED_B>
__global__ void products(float* out, const unsigned* in, unsigned long long a, unsigned long long b, int from_b, int bytes) {
    copy_in(in, bytes);
    float sums[N / 2];
    for (int i = 0; i < N / 2; i++) sums[i] = __int_as_float(0x7fc00000);
    a |= matrix_descriptor(shared, 0, 0, Swizzle::NONE), b |= matrix_descriptor(shared + from_b, 0, 0, Swizzle::NONE);
    begin_products();
    warpgroup_multiply_add<T, N, TRANSPOSED_A, TRANSPOSED_B>(sums, a, b, false);
    warpgroup_multiply_add<T, N, TRANSPOSED_A, TRANSPOSED_B>(sums, a, b, true);
    close_products();
    wait_products<0>();
    for (int i = 0; i < N / 2; i++) out[threadIdx.x + THREADS * i] = sums[i];
}

// A in registers: word t + 128 r of `in` behind the bytes of B.
template <typename T, int N, bool TRANSPOSED_B>
__global__ void products_from_registers(float* out, const unsigned* in, unsigned long long b, int bytes) {
    copy_in(in, bytes);
    float sums[N / 2];
    unsigned a[4];
    for (int r = 0; r < 4; r++) a[r] = in[bytes / 4 + threadIdx.x + THREADS * r];
    b |= matrix_descriptor(shared, 0, 0, Swizzle::NONE);
    for (int i = 0; i < N / 2; i++) sums[i] = 0;
    begin_products();
    warpgroup_multiply_add<T, N, TRANSPOSED_B>(sums, a, b, true);
    close_products();
    warpgroup_multiply_add<T, N, TRANSPOSED_B>(sums, a, b, true);
    close_products();
    wait_products<1>();
    wait_products<0>();
    for (int i = 0; i < N / 2; i++) out[threadIdx.x + THREADS * i] = sums[i];
}

// Sums in f16, and the signs of the operands.
KERNEL products_in_f16(unsigned* out, const unsigned* in, unsigned long long a, unsigned long long b, int from_b, int bytes) {
    copy_in(in, bytes);
    unsigned sums[4] = {};
    a |= matrix_descriptor(shared, 0, 0, Swizzle::NONE), b |= matrix_descriptor(shared + from_b, 0, 0, Swizzle::NONE);
    begin_products();
    asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f16.f16.f16 {%0,%1,%2,%3}, %4, %5, 1, -1, 1, 0, 0;"
                 : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3]) : "l"(a), "l"(b));
    close_products();
    wait_products<0>();
    for (int i = 0; i < 4; i++) out[threadIdx.x + THREADS * i] = sums[i];
}

KERNEL narrow_products(unsigned* out, const unsigned* in, unsigned long long a, unsigned long long b, int from_b, int bytes) {
    copy_in(in, bytes);
    unsigned sums[4] = {};
    a |= matrix_descriptor(shared, 0, 0, Swizzle::NONE), b |= matrix_descriptor(shared + from_b, 0, 0, Swizzle::NONE);
    give_registers_back<40>();
    take_registers<40>();
    begin_products();
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, %4, %5, 1, -1, -1, 0, 0;"
                 : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3]) : "l"(a), "l"(b));
    close_products();
    wait_products<0>();
    for (int i = 0; i < 4; i++) out[threadIdx.x + THREADS * i] = sums[i];
}

// Products of bytes: `plain` and `wide` stand for types in the instruction's name.
#define BYTE_PRODUCTS(NAME, TYPES, OPERANDS)                                                                                     \
    KERNEL NAME(unsigned* out, const unsigned* in, unsigned long long a, unsigned long long b, int from_b, int bytes) {           \
        copy_in(in, bytes);                                                                                                       \
        unsigned sums[4] = {1, 2, 3, 4};                                                                                          \
        a |= matrix_descriptor(shared, 0, 0, Swizzle::NONE), b |= matrix_descriptor(shared + from_b, 0, 0, Swizzle::NONE);        \
        begin_products();                                                                                                         \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\nwgmma.mma_async.sync.aligned.m64n8k32." TYPES " {%0,%1,%2,%3}, %4, %5, p" OPERANDS ";\n}" \
                     : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3]) : "l"(a), "l"(b), "r"(bytes));                  \
        close_products();                                                                                                         \
        wait_products<0>();                                                                                                       \
        for (int i = 0; i < 4; i++) out[threadIdx.x + THREADS * i] = sums[i];                                                     \
    }
BYTE_PRODUCTS(products_of_s8, "s32.s8.s8", "")
BYTE_PRODUCTS(products_of_u8_s8, "s32.u8.s8", "")
BYTE_PRODUCTS(products_of_e4m3, "f32.e4m3.e4m3", ", 1, -1")

// Threads that leave: the phases after do not wait for them.
KERNEL barrier_left(unsigned* out) {
    __shared__ Barrier barrier;
    if (threadIdx.x) return;
    unsigned address = shared_address(&barrier), before, answers[8];
    unsigned long long state;
    make_barrier(&barrier, 4);
    asm volatile("mbarrier.arrive_drop.shared::cta.b64 %0, [%1], 2;" : "=l"(state) : "r"(address) : "memory");
    asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(before) : "l"(state));
    answers[0] = before;
    asm volatile("mbarrier.arrive.noComplete.release.cta.shared::cta.b64 %0, [%1], 1;" : "=l"(state) : "r"(address) : "memory");
    asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(before) : "l"(state));
    answers[1] = before, answers[2] = is_complete(&barrier, 0);
    arrive(&barrier);  // the fourth
    answers[3] = is_complete(&barrier, 0);
    arrive(&barrier), answers[4] = is_complete(&barrier, 1);
    for (int i = 0; i < 5; i++) out[i] = answers[i];
}
KERNEL barrier_left_for_good(unsigned* out) {
    __shared__ Barrier barrier;
    if (threadIdx.x) return;
    unsigned address = shared_address(&barrier);
    unsigned long long state;
    make_barrier(&barrier, 4);
    asm volatile("mbarrier.arrive_drop.shared::cta.b64 _, [%0], 2;" ::"r"(address) : "memory");
    arrive(&barrier), arrive(&barrier);
    out[0] = is_complete(&barrier, 0);
    asm volatile("mbarrier.arrive_drop.noComplete.shared.b64 %0, [%1], 1;" : "=l"(state) : "r"(address) : "memory");
    out[1] = is_complete(&barrier, 1);
    asm volatile("mbarrier.arrive_drop.expect_tx.shared::cta.b64 %0, [%1], 16;" : "=l"(state) : "r"(address) : "memory");
    out[2] = is_complete(&barrier, 1);  // 16 bytes are missing
    asm volatile("mbarrier.complete_tx.shared::cta.b64 [%0], 16;" ::"r"(address) : "memory");
    out[3] = is_complete(&barrier, 1);
    out[4] = is_complete(&barrier, 0);  // nobody is left, and nothing completes
}
