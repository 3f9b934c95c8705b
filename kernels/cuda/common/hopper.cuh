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

#define SUMS_4(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define SUMS_16(i) SUMS_4(i), SUMS_4(i + 4), SUMS_4(i + 8), SUMS_4(i + 12)
#define SUMS_32(i) SUMS_16(i), SUMS_16(i + 16)
#define SUMS_64(i) SUMS_32(i), SUMS_32(i + 32)
#define SUMS_96(i) SUMS_64(i), SUMS_32(i + 64)
#define SUMS_128(i) SUMS_64(i), SUMS_64(i + 64)
#define NAMES_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define NAMES_32 NAMES_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NAMES_64                                                                      \
    NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48"   \
             ",%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define NAMES_96                                                                      \
    NAMES_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80"   \
             ",%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define NAMES_128                                                                             \
    NAMES_96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"   \
             ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// I0, I1, … are the numbers of the operands after the sums, of which there are COUNT.
#define WARPGROUP_PRODUCT_16_BIT(T, NAME, N, COUNT, I0, I1, I2, I3, I4, I5, I6)                                       \
    template <bool TRANSPOSED_A, bool TRANSPOSED_B>                                                                   \
    struct WarpgroupProduct<T, N, TRANSPOSED_A, TRANSPOSED_B> {                                                       \
        __device__ static void add(float (&sums)[COUNT], unsigned long long a, unsigned long long b, bool go_on) {    \
            asm volatile("{\n.reg .pred go_on;\nsetp.ne.b32 go_on, %" #I2 ", 0;\n"                                    \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" NAMES_##COUNT "}, %" #I0 \
                         ", %" #I1 ", go_on, 1, 1, %" #I3 ", %" #I4 ";\n}"                                            \
                         : SUMS_##COUNT(0)                                                                            \
                         : "l"(a), "l"(b), "r"(int(go_on)), "n"(int(TRANSPOSED_A)), "n"(int(TRANSPOSED_B)));          \
        }                                                                                                             \
        __device__ static void add(float (&sums)[COUNT], const unsigned (&a)[4], unsigned long long b, bool go_on) {  \
            asm volatile("{\n.reg .pred go_on;\nsetp.ne.b32 go_on, %" #I5 ", 0;\n"                                    \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" NAMES_##COUNT           \
                         "}, {%" #I0 ", %" #I1 ", %" #I2 ", %" #I3 "}, %" #I4 ", go_on, 1, 1, %" #I6 ";\n}"           \
                         : SUMS_##COUNT(0)                                                                            \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(go_on)),                       \
                           "n"(int(TRANSPOSED_B)));                                                                   \
        }                                                                                                             \
    };

#define WARPGROUP_PRODUCT_TF32(N, COUNT, I0, I1, I2, I3, I4, I5)                                                      \
    template <>                                                                                                       \
    struct WarpgroupProduct<float, N, false, false> {                                                                 \
        __device__ static void add(float (&sums)[COUNT], unsigned long long a, unsigned long long b, bool go_on) {    \
            asm volatile("{\n.reg .pred go_on;\nsetp.ne.b32 go_on, %" #I2 ", 0;\n"                                    \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k8.f32.tf32.tf32 {" NAMES_##COUNT "}, %" #I0         \
                         ", %" #I1 ", go_on, 1, 1;\n}"                                                                \
                         : SUMS_##COUNT(0)                                                                            \
                         : "l"(a), "l"(b), "r"(int(go_on)));                                                          \
        }                                                                                                             \
        __device__ static void add(float (&sums)[COUNT], const unsigned (&a)[4], unsigned long long b, bool go_on) {  \
            asm volatile("{\n.reg .pred go_on;\nsetp.ne.b32 go_on, %" #I5 ", 0;\n"                                    \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k8.f32.tf32.tf32 {" NAMES_##COUNT                    \
                         "}, {%" #I0 ", %" #I1 ", %" #I2 ", %" #I3 "}, %" #I4 ", go_on, 1, 1;\n}"                     \
                         : SUMS_##COUNT(0)                                                                            \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(go_on)));                      \
        }                                                                                                             \
    };

#define WARPGROUP_PRODUCTS(N, COUNT, I0, I1, I2, I3, I4, I5, I6)                                     \
    WARPGROUP_PRODUCT_16_BIT(__nv_bfloat16, "bf16", N, COUNT, I0, I1, I2, I3, I4, I5, I6)            \
    WARPGROUP_PRODUCT_16_BIT(__half, "f16", N, COUNT, I0, I1, I2, I3, I4, I5, I6)                    \
    WARPGROUP_PRODUCT_TF32(N, COUNT, I0, I1, I2, I3, I4, I5)

WARPGROUP_PRODUCTS(32, 16, 16, 17, 18, 19, 20, 21, 22)
WARPGROUP_PRODUCTS(64, 32, 32, 33, 34, 35, 36, 37, 38)
WARPGROUP_PRODUCTS(128, 64, 64, 65, 66, 67, 68, 69, 70)
WARPGROUP_PRODUCTS(192, 96, 96, 97, 98, 99, 100, 101, 102)
WARPGROUP_PRODUCTS(256, 128, 128, 129, 130, 131, 132, 133, 134)

#undef WARPGROUP_PRODUCTS
#undef WARPGROUP_PRODUCT_TF32
#undef WARPGROUP_PRODUCT_16_BIT
#undef NAMES_128
#undef NAMES_96
#undef NAMES_64
#undef NAMES_32
#undef NAMES_16
#undef SUMS_128
#undef SUMS_96
#undef SUMS_64
#undef SUMS_32
#undef SUMS_16
#undef SUMS_4

#endif
