// Clusters as kernels see them: addresses in other blocks' shared memory, the cluster's barrier, and asynchronous writes
// that an mbarrier beside what they write counts.
#pragma once
#include "hopper.hpp"

namespace sim {

// --- addresses (PTX ISA 9.7.9 mapa, getctarank) ---------------------------------------------------------------------

u64 map_to_rank(Thread& self, u64 address, u32 rank, Site site);          // of the cluster's window
u64 map_generic_to_rank(Thread& self, u64 address, u32 rank, Site site);  // generic
u32 rank_of_address(Thread& self, u64 address, Site site);
u32 rank_of_generic(Thread& self, u64 address, Site site);

// --- barrier.cluster (PTX ISA 9.7.13.4) -----------------------------------------------------------------------------

void cluster_arrive(Thread& self, bool releases, bool aligned, Site site);
void cluster_wait(Thread& self, bool aligned, Site site);

// --- asynchronous writes to shared memory of the cluster (PTX ISA 9.7.9.12 st.async, 9.7.13.7 red.async) ------------

void store_async(Thread& self, u64 to, const void* value, u32 bytes, u64 barrier, Site site);
void reduce_async(Thread& self, u64 to, u64 value, u32 bytes, Combine combine, u64 barrier, Site site);
void bulk_send(Thread& self, u64 to, u64 from_shared, u32 bytes, u64 barrier, Site site);
void bulk_send_reduced(Thread& self, u64 to, u64 from_shared, u32 bytes, Combine combine, u32 element, u64 barrier, Site site);

template <class T> void and_to(u8* into, const u8* from) { change_to<T>(into, from, [](T a, T b) -> T { return a & b; }); }
template <class T> void or_to(u8* into, const u8* from) { change_to<T>(into, from, [](T a, T b) -> T { return a | b; }); }
template <class T> void xor_to(u8* into, const u8* from) { change_to<T>(into, from, [](T a, T b) -> T { return a ^ b; }); }
template <class T> void inc_to(u8* into, const u8* from) { change_to<T>(into, from, [](T a, T b) -> T { return a >= b ? 0 : a + 1; }); }
template <class T> void dec_to(u8* into, const u8* from) {
    change_to<T>(into, from, [](T a, T b) -> T { return a == 0 || a > b ? b : a - 1; });
}

}  // namespace sim
