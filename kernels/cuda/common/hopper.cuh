// Hopper's own instructions: barriers in shared memory that count bytes, copies of whole tiles by the tensor memory
// accelerator (TMA), and products by a warpgroup, four warps at once, straight from shared memory (wgmma).
//
// sm_90 and later, except for the last part, which only sm_90a has.
#pragma once

#include "common/shared_address.cuh"
#include "common/types.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// ---- barriers: PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier" ------------------------

// A barrier has phases, 0, 1, 2, …. A phase ends when so many arrivals as it was made for have come and as many bytes
// as they announced have landed; then the next begins.
using Barrier = unsigned long long;  // in shared memory

// One thread makes it, before fence_barriers and a __syncthreads. mbarrier.init
__device__ inline void make_barrier(Barrier* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Makes new barriers known to the TMA. fence.mbarrier_init
__device__ inline void fence_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// mbarrier.arrive
__device__ inline void arrive(Barrier* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and announces bytes that copies will bring. mbarrier.arrive.expect_tx
__device__ inline void arrive_expecting(Barrier* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

// Whether a phase of this parity (0 for phases 0, 2, …) has ended and the one after it has not; may wait a while for
// it. mbarrier.try_wait.parity
__device__ inline bool phase_ended(Barrier* barrier, int parity) {
    int ended;
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
        "selp.b32 %0, 1, 0, ended;\n"
        "}"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    return ended;
}

__device__ inline void wait_phase(Barrier* barrier, int parity) {
    while (!phase_ended(barrier, parity)) {
    }
}

// ---- tiles: PTX ISA, "Data Movement and Conversion Instructions: Tensor copy" --------------------------------------

// A matrix in global memory, its strides, the size of a tile and how it is swizzled in shared memory: the CUtensorMap
// that the driver's cuTensorMapEncodeTiled makes. A kernel takes it as `const __grid_constant__ TensorMap map`.
struct alignas(64) TensorMap {
    unsigned long long opaque[16];
};

// prefetch.tensormap
__device__ inline void prefetch(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// One thread starts the copy of the tile at column x and row y. What lies outside of the matrix becomes zero. `barrier`
// counts the bytes, which are always those of a whole tile. The tile is aligned to 128 bytes, or to 1024 where it is
// swizzled in lines of 128. cp.async.bulk.tensor, global to shared
__device__ inline void load_tile(void* to_shared, const TensorMap* map, int x, int y, Barrier* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to_shared)),
        "l"(map), "r"(x), "r"(y), "r"(shared_address(barrier))
        : "memory");
}

// The way back; what lies outside of the matrix is not written. The threads that wrote the tile call fence_shared
// first, and a barrier follows. cp.async.bulk.tensor, shared to global
__device__ inline void store_tile(const TensorMap* map, int x, int y, const void* from_shared) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(x),
                 "r"(y), "r"(shared_address(from_shared))
                 : "memory");
}

// Both of a tensor of four axes, x along the contiguous one.
__device__ inline void load_tile(void* to_shared, const TensorMap* map, int x, int y, int z, int w, Barrier* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared_address(to_shared)),
        "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(shared_address(barrier))
        : "memory");
}
__device__ inline void store_tile(const TensorMap* map, int x, int y, int z, int w, const void* from_shared) {
    asm volatile(
        "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(map), "r"(x),
        "r"(y), "r"(z), "r"(w), "r"(shared_address(from_shared))
        : "memory");
}

// The stores since the last call are a group. cp.async.bulk.commit_group
__device__ inline void close_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until at most OPEN of this thread's groups, the newest, still have to read shared memory.
// cp.async.bulk.wait_group.read
template <int OPEN>
__device__ void wait_stores_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(OPEN) : "memory");
}

// … until their writes are done. cp.async.bulk.wait_group
template <int OPEN>
__device__ void wait_stores() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(OPEN) : "memory");
}

// Lets the TMA and wgmma see what this thread wrote to shared memory. fence.proxy.async
__device__ inline void fence_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- clusters: blocks that run beside each other and reach each other's shared memory ------------------------------

// The kernel is `__global__ __cluster_dims__(x, y, z)`, or its launch says the size. A block is named by its rank, x
// fastest. Another block's memory may be reached from a sync_cluster on (it has begun), and until another one, before
// which no block may end. PTX ISA, "Parallel Synchronization and Communication Instructions: barrier.cluster"

// %cluster_ctarank
__device__ inline int block_rank() {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return int(rank);
}

// %cluster_nctarank
__device__ inline int blocks_of_cluster() {
    unsigned blocks;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
    return int(blocks);
}

// All threads arrive, and later wait; in between is time for what needs no other block. What was written before the
// arrival is seen after the wait. barrier.cluster.arrive, barrier.cluster.wait
__device__ inline void arrive_at_cluster() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ inline void wait_for_cluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ inline void sync_cluster() {
    arrive_at_cluster();
    wait_for_cluster();
}

// The same place in the shared memory of the block of this rank, to be read and written as any other. mapa
template <typename T>
__device__ T* in_block(T* own, int rank) {
    T* there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(own), "r"(rank));
    return there;
}

// The same as 32 bits, which the instructions below take. mapa.shared::cluster
__device__ inline unsigned address_in_block(const void* own, int rank) {
    unsigned there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(own)), "r"(rank));
    return there;
}

// Arrives at another block's barrier. mbarrier.arrive.shared::cluster
__device__ inline void arrive_in_block(Barrier* barrier, int rank) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(address_in_block(barrier, rank))
                 : "memory");
}

// load_tile to the same place in every block whose bit is set, each of which expects the bytes at its own barrier.
// cp.async.bulk.tensor, multicast
__device__ inline void load_tile_in_blocks(unsigned blocks, void* to_shared, const TensorMap* map, int x, int y,
                                           Barrier* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to_shared)),
        "l"(map), "r"(x), "r"(y), "r"(shared_address(barrier)), "h"((unsigned short)blocks)
        : "memory");
}

// A store to another block's memory, of four bytes that its barrier there counts. st.async
__device__ inline void store_in_block(unsigned* own, int rank, unsigned value, Barrier* barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(
                     address_in_block(own, rank)),
                 "r"(value), "r"(address_in_block(barrier, rank))
                 : "memory");
}

// One thread copies bytes, a multiple of 16, to another block's memory, whose barrier there counts them. What was
// stored is shown to the copy by fence_shared first. cp.async.bulk, shared to shared
__device__ inline void copy_to_block(void* own_to, int rank, const void* from_shared, int bytes, Barrier* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     address_in_block(own_to, rank)),
                 "r"(shared_address(from_shared)), "r"(bytes), "r"(address_in_block(barrier, rank))
                 : "memory");
}

#endif

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

// ---- registers: PTX ISA, "Miscellaneous Instructions: setmaxnreg" --------------------------------------------------

// All warps of a warpgroup call it. The kernel's registers were given out evenly; a group that only copies gives some
// back, and one that computes takes them. setmaxnreg
template <int REGISTERS>
__device__ void give_registers_back() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// ---- products: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions" -----------------------------------------

// A product is started by all four warps, and runs beside them:
//
//     begin_products();                          // registers and shared memory are ready
//     warpgroup_multiply_add<T, 128>(sums, a, b, accumulate);
//     …
//     close_products();
//     wait_products<0>();                        // sums may be read

// wgmma.fence
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// The products since the last call are a group. wgmma.commit_group
__device__ inline void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most OPEN groups, the newest, are on their way. wgmma.wait_group
template <int OPEN>
__device__ void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(OPEN) : "memory");
}

// Keeps the compiler from moving sums that a product is about to use, or has just made, across this place.
template <int COUNT>
__device__ void hold(float (&sums)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(sums[i])::"memory");
}

enum class Swizzle : unsigned long long { NONE = 0, LINES_OF_128 = 1, LINES_OF_64 = 2, LINES_OF_32 = 3 };

// Where an operand lies in shared memory. PTX ISA, "Matrix Descriptor Format". With lines of 128 bytes, in which the
// tile is aligned to 1024 bytes:
//   K along the lines (64 16-bit elements each): `stride` is from 8 lines to the next 8 along M or N, 1024 where they
//     follow one another; `leading` is not used. The next 16 elements of K begin 32 bytes further on.
//   M or N along the lines (a "transposed" operand): `leading` is from 64 elements of M or N to the next 64, `stride`
//     from 8 lines to the next 8 along K, 1024 where they follow one another.
__device__ inline unsigned long long matrix_descriptor(const void* tile, int leading, int stride,
                                                       Swizzle swizzle = Swizzle::LINES_OF_128) {
    auto field = [](unsigned bytes) { return (unsigned long long)(bytes >> 4 & 0x3fff); };
    return field(shared_address(tile)) | field(leading) << 16 | field(stride) << 32 |
           (unsigned long long)swizzle << 62;
}

// The descriptor of what lies so many bytes further on, a multiple of 16: an addition, where a new one takes five
// operations. The tile ends below 256 KiB, so that nothing is carried.
__device__ inline unsigned long long further(unsigned long long descriptor, int bytes) {
    return descriptor >> 32 << 32 | unsigned(unsigned(descriptor) + bytes / 16);
}

// sums += a b, or sums = a b. a is 64 x 16 (64 x 8 for float), b 16 x N (8 x N), each by its descriptor. sums is 64 x
// N: warp w of the four has rows 16 w to 16 w + 15, and lane l of it at sums[4 j], sums[4 j + 1] the neighbours of row
// l / 4 and columns 8 j + 2 (l % 4) …, at sums[4 j + 2], sums[4 j + 3] those 8 rows below. T is float (its TF32 part),
// __nv_bfloat16 or __half; only 16-bit operands can be TRANSPOSED (see matrix_descriptor). wgmma.mma_async
template <typename T, int N, bool TRANSPOSED_A = false, bool TRANSPOSED_B = false>
struct WarpgroupProduct;

template <typename T, int N, bool TRANSPOSED_A = false, bool TRANSPOSED_B = false>
__device__ void warpgroup_multiply_add(float (&sums)[N / 2], unsigned long long a, unsigned long long b,
                                       bool accumulate = true) {
    WarpgroupProduct<T, N, TRANSPOSED_A, TRANSPOSED_B>::add(sums, a, b, accumulate);
}

// The same with a in registers: those of multiply_add (matrix.cuh) for the warp's own 16 rows.
template <typename T, int N, bool TRANSPOSED_B = false>
__device__ void warpgroup_multiply_add(float (&sums)[N / 2], const unsigned (&a)[4], unsigned long long b,
                                       bool accumulate = true) {
    WarpgroupProduct<T, N, false, TRANSPOSED_B>::add(sums, a, b, accumulate);
}

// The rest of this file writes the instruction out for each type and N: an asm statement has no loops.

#define WARPGROUP_SUMS_AT(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define WARPGROUP_SUMS_4 WARPGROUP_SUMS_AT(0)
#define WARPGROUP_SUMS_8 WARPGROUP_SUMS_4, WARPGROUP_SUMS_AT(4)
#define WARPGROUP_SUMS_12 WARPGROUP_SUMS_8, WARPGROUP_SUMS_AT(8)
#define WARPGROUP_SUMS_16 WARPGROUP_SUMS_12, WARPGROUP_SUMS_AT(12)
#define WARPGROUP_SUMS_20 WARPGROUP_SUMS_16, WARPGROUP_SUMS_AT(16)
#define WARPGROUP_SUMS_24 WARPGROUP_SUMS_20, WARPGROUP_SUMS_AT(20)
#define WARPGROUP_SUMS_28 WARPGROUP_SUMS_24, WARPGROUP_SUMS_AT(24)
#define WARPGROUP_SUMS_32 WARPGROUP_SUMS_28, WARPGROUP_SUMS_AT(28)
#define WARPGROUP_SUMS_36 WARPGROUP_SUMS_32, WARPGROUP_SUMS_AT(32)
#define WARPGROUP_SUMS_40 WARPGROUP_SUMS_36, WARPGROUP_SUMS_AT(36)
#define WARPGROUP_SUMS_44 WARPGROUP_SUMS_40, WARPGROUP_SUMS_AT(40)
#define WARPGROUP_SUMS_48 WARPGROUP_SUMS_44, WARPGROUP_SUMS_AT(44)
#define WARPGROUP_SUMS_52 WARPGROUP_SUMS_48, WARPGROUP_SUMS_AT(48)
#define WARPGROUP_SUMS_56 WARPGROUP_SUMS_52, WARPGROUP_SUMS_AT(52)
#define WARPGROUP_SUMS_60 WARPGROUP_SUMS_56, WARPGROUP_SUMS_AT(56)
#define WARPGROUP_SUMS_64 WARPGROUP_SUMS_60, WARPGROUP_SUMS_AT(60)
#define WARPGROUP_SUMS_68 WARPGROUP_SUMS_64, WARPGROUP_SUMS_AT(64)
#define WARPGROUP_SUMS_72 WARPGROUP_SUMS_68, WARPGROUP_SUMS_AT(68)
#define WARPGROUP_SUMS_76 WARPGROUP_SUMS_72, WARPGROUP_SUMS_AT(72)
#define WARPGROUP_SUMS_80 WARPGROUP_SUMS_76, WARPGROUP_SUMS_AT(76)
#define WARPGROUP_SUMS_84 WARPGROUP_SUMS_80, WARPGROUP_SUMS_AT(80)
#define WARPGROUP_SUMS_88 WARPGROUP_SUMS_84, WARPGROUP_SUMS_AT(84)
#define WARPGROUP_SUMS_92 WARPGROUP_SUMS_88, WARPGROUP_SUMS_AT(88)
#define WARPGROUP_SUMS_96 WARPGROUP_SUMS_92, WARPGROUP_SUMS_AT(92)
#define WARPGROUP_SUMS_100 WARPGROUP_SUMS_96, WARPGROUP_SUMS_AT(96)
#define WARPGROUP_SUMS_104 WARPGROUP_SUMS_100, WARPGROUP_SUMS_AT(100)
#define WARPGROUP_SUMS_108 WARPGROUP_SUMS_104, WARPGROUP_SUMS_AT(104)
#define WARPGROUP_SUMS_112 WARPGROUP_SUMS_108, WARPGROUP_SUMS_AT(108)
#define WARPGROUP_SUMS_116 WARPGROUP_SUMS_112, WARPGROUP_SUMS_AT(112)
#define WARPGROUP_SUMS_120 WARPGROUP_SUMS_116, WARPGROUP_SUMS_AT(116)
#define WARPGROUP_SUMS_124 WARPGROUP_SUMS_120, WARPGROUP_SUMS_AT(120)
#define WARPGROUP_SUMS_128 WARPGROUP_SUMS_124, WARPGROUP_SUMS_AT(124)
#define WARPGROUP_NAMES_4 "%0,%1,%2,%3"
#define WARPGROUP_NAMES_8 WARPGROUP_NAMES_4 ",%4,%5,%6,%7"
#define WARPGROUP_NAMES_12 WARPGROUP_NAMES_8 ",%8,%9,%10,%11"
#define WARPGROUP_NAMES_16 WARPGROUP_NAMES_12 ",%12,%13,%14,%15"
#define WARPGROUP_NAMES_20 WARPGROUP_NAMES_16 ",%16,%17,%18,%19"
#define WARPGROUP_NAMES_24 WARPGROUP_NAMES_20 ",%20,%21,%22,%23"
#define WARPGROUP_NAMES_28 WARPGROUP_NAMES_24 ",%24,%25,%26,%27"
#define WARPGROUP_NAMES_32 WARPGROUP_NAMES_28 ",%28,%29,%30,%31"
#define WARPGROUP_NAMES_36 WARPGROUP_NAMES_32 ",%32,%33,%34,%35"
#define WARPGROUP_NAMES_40 WARPGROUP_NAMES_36 ",%36,%37,%38,%39"
#define WARPGROUP_NAMES_44 WARPGROUP_NAMES_40 ",%40,%41,%42,%43"
#define WARPGROUP_NAMES_48 WARPGROUP_NAMES_44 ",%44,%45,%46,%47"
#define WARPGROUP_NAMES_52 WARPGROUP_NAMES_48 ",%48,%49,%50,%51"
#define WARPGROUP_NAMES_56 WARPGROUP_NAMES_52 ",%52,%53,%54,%55"
#define WARPGROUP_NAMES_60 WARPGROUP_NAMES_56 ",%56,%57,%58,%59"
#define WARPGROUP_NAMES_64 WARPGROUP_NAMES_60 ",%60,%61,%62,%63"
#define WARPGROUP_NAMES_68 WARPGROUP_NAMES_64 ",%64,%65,%66,%67"
#define WARPGROUP_NAMES_72 WARPGROUP_NAMES_68 ",%68,%69,%70,%71"
#define WARPGROUP_NAMES_76 WARPGROUP_NAMES_72 ",%72,%73,%74,%75"
#define WARPGROUP_NAMES_80 WARPGROUP_NAMES_76 ",%76,%77,%78,%79"
#define WARPGROUP_NAMES_84 WARPGROUP_NAMES_80 ",%80,%81,%82,%83"
#define WARPGROUP_NAMES_88 WARPGROUP_NAMES_84 ",%84,%85,%86,%87"
#define WARPGROUP_NAMES_92 WARPGROUP_NAMES_88 ",%88,%89,%90,%91"
#define WARPGROUP_NAMES_96 WARPGROUP_NAMES_92 ",%92,%93,%94,%95"
#define WARPGROUP_NAMES_100 WARPGROUP_NAMES_96 ",%96,%97,%98,%99"
#define WARPGROUP_NAMES_104 WARPGROUP_NAMES_100 ",%100,%101,%102,%103"
#define WARPGROUP_NAMES_108 WARPGROUP_NAMES_104 ",%104,%105,%106,%107"
#define WARPGROUP_NAMES_112 WARPGROUP_NAMES_108 ",%108,%109,%110,%111"
#define WARPGROUP_NAMES_116 WARPGROUP_NAMES_112 ",%112,%113,%114,%115"
#define WARPGROUP_NAMES_120 WARPGROUP_NAMES_116 ",%116,%117,%118,%119"
#define WARPGROUP_NAMES_124 WARPGROUP_NAMES_120 ",%120,%121,%122,%123"
#define WARPGROUP_NAMES_128 WARPGROUP_NAMES_124 ",%124,%125,%126,%127"

// I0, I1, … are the numbers of the operands after the sums, of which there are COUNT.
#define WARPGROUP_PRODUCT_16_BIT(T, NAME, N, COUNT, I0, I1, I2, I3, I4, I5, I6) \
    template <bool TRANSPOSED_A, bool TRANSPOSED_B> \
    struct WarpgroupProduct<T, N, TRANSPOSED_A, TRANSPOSED_B> { \
        __device__ static void add(float (&sums)[COUNT], unsigned long long a, unsigned long long b, bool go_on) { \
            asm volatile("{\n.reg .pred go_on;\nsetp.ne.b32 go_on, %" #I2 ", 0;\n" \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" WARPGROUP_NAMES_##COUNT "}, %" #I0 \
                         ", %" #I1 ", go_on, 1, 1, %" #I3 ", %" #I4 ";\n}" \
                         : WARPGROUP_SUMS_##COUNT \
                         : "l"(a), "l"(b), "r"(int(go_on)), "n"(int(TRANSPOSED_A)), "n"(int(TRANSPOSED_B))); \
        } \
        __device__ static void add(float (&sums)[COUNT], const unsigned (&a)[4], unsigned long long b, bool go_on) { \
            asm volatile("{\n.reg .pred go_on;\nsetp.ne.b32 go_on, %" #I5 ", 0;\n" \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" WARPGROUP_NAMES_##COUNT \
                         "}, {%" #I0 ", %" #I1 ", %" #I2 ", %" #I3 "}, %" #I4 ", go_on, 1, 1, %" #I6 ";\n}" \
                         : WARPGROUP_SUMS_##COUNT \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(go_on)), \
                           "n"(int(TRANSPOSED_B))); \
        } \
    };

#define WARPGROUP_PRODUCT_TF32(N, COUNT, I0, I1, I2, I3, I4, I5) \
    template <> \
    struct WarpgroupProduct<float, N, false, false> { \
        __device__ static void add(float (&sums)[COUNT], unsigned long long a, unsigned long long b, bool go_on) { \
            asm volatile("{\n.reg .pred go_on;\nsetp.ne.b32 go_on, %" #I2 ", 0;\n" \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k8.f32.tf32.tf32 {" WARPGROUP_NAMES_##COUNT "}, %" #I0 \
                         ", %" #I1 ", go_on, 1, 1;\n}" \
                         : WARPGROUP_SUMS_##COUNT \
                         : "l"(a), "l"(b), "r"(int(go_on))); \
        } \
        __device__ static void add(float (&sums)[COUNT], const unsigned (&a)[4], unsigned long long b, bool go_on) { \
            asm volatile("{\n.reg .pred go_on;\nsetp.ne.b32 go_on, %" #I5 ", 0;\n" \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k8.f32.tf32.tf32 {" WARPGROUP_NAMES_##COUNT \
                         "}, {%" #I0 ", %" #I1 ", %" #I2 ", %" #I3 "}, %" #I4 ", go_on, 1, 1;\n}" \
                         : WARPGROUP_SUMS_##COUNT \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(go_on))); \
        } \
    };

#define WARPGROUP_PRODUCTS(N, COUNT, I0, I1, I2, I3, I4, I5, I6) \
    WARPGROUP_PRODUCT_16_BIT(__nv_bfloat16, "bf16", N, COUNT, I0, I1, I2, I3, I4, I5, I6) \
    WARPGROUP_PRODUCT_16_BIT(__half, "f16", N, COUNT, I0, I1, I2, I3, I4, I5, I6) \
    WARPGROUP_PRODUCT_TF32(N, COUNT, I0, I1, I2, I3, I4, I5)

WARPGROUP_PRODUCTS(8, 4, 4, 5, 6, 7, 8, 9, 10)
WARPGROUP_PRODUCTS(16, 8, 8, 9, 10, 11, 12, 13, 14)
WARPGROUP_PRODUCTS(24, 12, 12, 13, 14, 15, 16, 17, 18)
WARPGROUP_PRODUCTS(32, 16, 16, 17, 18, 19, 20, 21, 22)
WARPGROUP_PRODUCTS(40, 20, 20, 21, 22, 23, 24, 25, 26)
WARPGROUP_PRODUCTS(48, 24, 24, 25, 26, 27, 28, 29, 30)
WARPGROUP_PRODUCTS(56, 28, 28, 29, 30, 31, 32, 33, 34)
WARPGROUP_PRODUCTS(64, 32, 32, 33, 34, 35, 36, 37, 38)
WARPGROUP_PRODUCTS(72, 36, 36, 37, 38, 39, 40, 41, 42)
WARPGROUP_PRODUCTS(80, 40, 40, 41, 42, 43, 44, 45, 46)
WARPGROUP_PRODUCTS(88, 44, 44, 45, 46, 47, 48, 49, 50)
WARPGROUP_PRODUCTS(96, 48, 48, 49, 50, 51, 52, 53, 54)
WARPGROUP_PRODUCTS(104, 52, 52, 53, 54, 55, 56, 57, 58)
WARPGROUP_PRODUCTS(112, 56, 56, 57, 58, 59, 60, 61, 62)
WARPGROUP_PRODUCTS(120, 60, 60, 61, 62, 63, 64, 65, 66)
WARPGROUP_PRODUCTS(128, 64, 64, 65, 66, 67, 68, 69, 70)
WARPGROUP_PRODUCTS(136, 68, 68, 69, 70, 71, 72, 73, 74)
WARPGROUP_PRODUCTS(144, 72, 72, 73, 74, 75, 76, 77, 78)
WARPGROUP_PRODUCTS(152, 76, 76, 77, 78, 79, 80, 81, 82)
WARPGROUP_PRODUCTS(160, 80, 80, 81, 82, 83, 84, 85, 86)
WARPGROUP_PRODUCTS(168, 84, 84, 85, 86, 87, 88, 89, 90)
WARPGROUP_PRODUCTS(176, 88, 88, 89, 90, 91, 92, 93, 94)
WARPGROUP_PRODUCTS(184, 92, 92, 93, 94, 95, 96, 97, 98)
WARPGROUP_PRODUCTS(192, 96, 96, 97, 98, 99, 100, 101, 102)
WARPGROUP_PRODUCTS(200, 100, 100, 101, 102, 103, 104, 105, 106)
WARPGROUP_PRODUCTS(208, 104, 104, 105, 106, 107, 108, 109, 110)
WARPGROUP_PRODUCTS(216, 108, 108, 109, 110, 111, 112, 113, 114)
WARPGROUP_PRODUCTS(224, 112, 112, 113, 114, 115, 116, 117, 118)
WARPGROUP_PRODUCTS(232, 116, 116, 117, 118, 119, 120, 121, 122)
WARPGROUP_PRODUCTS(240, 120, 120, 121, 122, 123, 124, 125, 126)
WARPGROUP_PRODUCTS(248, 124, 124, 125, 126, 127, 128, 129, 130)
WARPGROUP_PRODUCTS(256, 128, 128, 129, 130, 131, 132, 133, 134)

#undef WARPGROUP_PRODUCTS
#undef WARPGROUP_PRODUCT_TF32
#undef WARPGROUP_PRODUCT_16_BIT

#endif
