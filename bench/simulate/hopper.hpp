// Hopper's instructions as kernels see them: mbarrier, TMA and bulk copies, the fence between proxies, wgmma.
#pragma once
#include "memory.hpp"
#include "tensor_core.hpp"

namespace sim {

// An address operand of a barrier or a copy: an offset in the own block's shared memory, an address of the cluster's
// window, or generic; as an address of the cluster's window.
inline u64 cluster_operand(Thread&, u64 address) { return address; }
inline u64 shared_operand(Thread&, u64 address) { return address >> 24 ? address | 1ull << 40 : address; }  // out of bounds
inline u64 generic_operand(Thread& self, u64 address) { return generic_to_cluster(self, address); }

// --- mbarrier (PTX ISA 9.7.13.15) -----------------------------------------------------------------------------------

void mbarrier_init(Thread& self, u64 barrier, u32 count, Site site);
void mbarrier_invalidate(Thread& self, u64 barrier, Site site);
void mbarrier_expect(Thread& self, u64 barrier, u32 bytes, Site site);
void mbarrier_complete(Thread& self, u64 barrier, u32 bytes, Site site);
void mbarrier_announce(Thread& self);  // fence.mbarrier_init
// `order` is kRelease, or 0 for .relaxed, and perhaps kBlockScope. Answers the state that test_wait takes: its lowest bit is the phase's parity.
// `kind`: plain, by who will not come again (the phases after this one wait for so many less), or one that may not
// complete the phase.
enum class Arrival : u32 { Plain, Drop, NoComplete, DropNoComplete };
u64 mbarrier_arrive(Thread& self, u64 barrier, u32 arrivals, u32 expected_bytes, u32 order, Site site,
                    Arrival kind = Arrival::Plain);
inline u32 mbarrier_pending(u64 state) { return static_cast<u32>(state >> 1); }  // before the arrival that answered it
// Whether the phase of this parity is complete; `blocks` for try_wait, which may wait until it is.
bool mbarrier_test(Thread& self, u64 barrier, u32 parity, u32 order, bool blocks, Site site);
// The thread's cp.async copies so far arrive when they have landed.
void copy_async_arrive(Thread& self, u64 barrier, bool counts_itself, Site site);

// --- bulk and tensor copies (PTX ISA 9.7.9.25) ----------------------------------------------------------------------

void bulk_load(Thread& self, u64 to_shared, u64 from, u32 bytes, u64 barrier, Site site);
void bulk_store(Thread& self, u64 to, u64 from_shared, u32 bytes, Site site);
void tile_load(Thread& self, u64 to_shared, u64 map, const s32* at, u32 rank, u64 barrier, Site site);
// To the same place in every block of the cluster whose rank is set in `blocks`, and counted by its mbarrier there.
void bulk_multicast(Thread& self, u64 to_shared, u64 from, u32 bytes, u64 barrier, u32 blocks, Site site);
void tile_multicast(Thread& self, u64 to_shared, u64 map, const s32* at, u32 rank, u64 barrier, u32 blocks, Site site);
void tile_store(Thread& self, u64 map, const s32* at, u32 rank, u64 from_shared, Site site);
// Reductions: each element of shared memory goes into one of global memory, at once for itself and in any order.
using Combine = void (*)(u8* into, const u8* from);
void bulk_reduce(Thread& self, u64 to, u64 from_shared, u32 bytes, Combine combine, u32 element, Site site);
void tile_reduce(Thread& self, u64 map, const s32* at, u32 rank, u64 from_shared, Site site);  // adds
void bulk_commit(Thread& self);
void bulk_wait(Thread& self, u32 newest);
void fence_async_proxy(Thread& self);

template <class T, class Change>
inline void change_to(u8* into, const u8* from, Change change) {
    T a, b;
    memcpy(&a, into, sizeof a);
    memcpy(&b, from, sizeof b);
    a = change(a, b);
    memcpy(into, &a, sizeof a);
}
template <class T> void add_to(u8* into, const u8* from) { change_to<T>(into, from, [](T a, T b) -> T { return a + b; }); }
template <class T> void min_to(u8* into, const u8* from) { change_to<T>(into, from, [](T a, T b) { return a < b ? a : b; }); }
template <class T> void max_to(u8* into, const u8* from) { change_to<T>(into, from, [](T a, T b) { return a > b ? a : b; }); }
template <class H> void add_half_to(u8* into, const u8* from) { change_to<u16>(into, from, half_add<H>); }

// --- wgmma (PTX ISA 9.7.15) -----------------------------------------------------------------------------------------

struct WgmmaForm {
    Element a, b;  // of one width
    Sums sums;
    u32 n;
    bool negate_a, negate_b;
    bool transposed_a, transposed_b;  // in shared memory M (or N), and not K, is contiguous
};
// `sums` are the accumulators' places in the calling thread: they are read and written when the operation lands.
// Answers the operation's number among those of the warp, from 1.
u32 wgmma(Thread& self, const WgmmaForm& form, u32* const* sums, const u32* a, u64 a_matrix, u64 b_matrix, bool add,
          Site site);
void wgmma_fence(Thread& self, Site site);
void wgmma_commit(Thread& self, Site site);
// Answers up to which number the warp has waited for its operations.
u32 wgmma_wait(Thread& self, u32 newest, Site site);

// What a kernel remembers of a register that wgmma reads or writes: the last operation under way with it, and the
// number of wgmma.fence after which something else used it last.
struct WgmmaUse {
    u32 operation = 0, used = 0;
};
[[noreturn]] void wgmma_too_early(Thread& self, bool writes, Site site);
[[noreturn]] void wgmma_unfenced(Thread& self, Site site);
void wgmma_unfenced_a(Thread& self, Site site);  // Triton 3.6 writes so, and it runs
// After `mov to, from`: if a wgmma has still to write `from`, then `to` gets what it will write. PTX has such copies
// between one wgmma and the next; ptxas gives both the same register.
void follow_sum(Thread& self, void* to, const void* from);

}  // namespace sim
