// Loads, stores and atomics of translated kernels: each is checked, then done on the host's memory.
//
// Global addresses are the host's own: the tensors are used where they lie. A shared address is an offset from the
// beginning of the block's shared memory; its generic form is a host address in the runtime's arena.
#pragma once
#include "runtime.hpp"

namespace sim {

enum Access : u32 {
    kRead = 1,
    kWrite = 2,
    kStrong = 4,  // volatile, relaxed, acquire, release, atomic: races with no other strong access
    kAcquire = 8,
    kRelease = 16,
    kSilent = 32,  // a write of the bytes that are there already
    kCopy = 64,    // by an asynchronous copy
    kBlockScope = 128,  // what it orders, it orders for its own block alone (.cta)
    kExchange = 256,    // cas and exch, of which locks are made
    kVolatile = 512,    // strong, but lanes of a warp are not ordered by it
    kClusterScope = 1024,  // what it orders, it orders for its own cluster alone (.cluster)
    kAnnounced = 2048,     // of an mbarrier that its maker announced (fence.mbarrier_init) before a barrier of the cluster
    kNonCoherent = 4096,   // a load of what nobody may write in the whole launch (ld.global.nc)
};

enum class Space : u32 { Generic, Global, Shared, Cluster, Local, Const, Param };

// Checks one access and returns the host address; a store passes what it will write, for the race checker.
void* reach_global(Thread& self, u64 address, u32 bytes, u32 access, Site site, const void* stored = nullptr);
void* reach_shared(Thread& self, u64 address, u32 bytes, u32 access, Site site, const void* stored = nullptr);
// The same in the cluster's window, where an address may name another block's memory.
void* reach_cluster(Thread& self, u64 address, u32 bytes, u32 access, Site site, const void* stored = nullptr);
void* reach_local(Thread& self, u64 address, u32 bytes, u32 access, Site site);
void* reach_constant(Thread& self, u64 address, u32 bytes, u32 access, Site site);  // .const and .param
void* reach_generic(Thread& self, u64 address, u32 bytes, u32 access, Site site, const void* stored = nullptr);

// A thread that polls must let others run: after a load that saw what it saw before, if it is strong or the thread has
// looped for long.
void polled(Thread& self, u64 address, u64 value, u32 access, Site site);
// After an atomic: one that changed memory is progress, one that did not is a poll.
void atomic_done(Thread& self, u64 address, bool did_change, u32 access, Site site);
void changed(u64 address);  // by an atomic or a strong store: who polls there may hope again

template <Space S>
inline void* reach(Thread& self, u64 address, u32 bytes, u32 access, Site site, const void* stored = nullptr) {
    if constexpr (S == Space::Global) return reach_global(self, address, bytes, access, site, stored);
    if constexpr (S == Space::Shared) return reach_shared(self, address, bytes, access, site, stored);
    if constexpr (S == Space::Cluster) return reach_cluster(self, address, bytes, access, site, stored);
    if constexpr (S == Space::Local) return reach_local(self, address, bytes, access, site);
    if constexpr (S == Space::Const || S == Space::Param) return reach_constant(self, address, bytes, access, site);
    return reach_generic(self, address, bytes, access, site, stored);
}

void aligned(Thread& self, u64 address, u32 bytes, Site site);  // or it is reported

// The elements of a vector access; they are loaded and stored at once, and aligned as a whole.
template <class T, int N>
struct Vector {
    T at[N];
};

template <Space S, class T>
inline T load(Thread& self, u64 address, u32 access, Site site) {
    T value;
    memcpy(&value, reach<S>(self, address, sizeof(T), kRead | access, site), sizeof(T));
    constexpr bool others_write = S == Space::Generic || S == Space::Global || S == Space::Shared || S == Space::Cluster;
    if (access & kStrong || (others_write && self.watched)) {
        u64 seen = 0;
        memcpy(&seen, &value, sizeof(T) < 8 ? sizeof(T) : 8);
        polled(self, address, seen, access, site);
    }
    return value;
}

template <Space S, class T>
inline void store(Thread& self, u64 address, T value, u32 access, Site site) {
    void* memory = reach<S>(self, address, sizeof(T), kWrite | access, site, &value);
    if (access & kStrong && memcmp(memory, &value, sizeof(T))) changed(address);
    memcpy(memory, &value, sizeof(T));
}

// `change` is the new value as a function of the old one, which is returned.
template <Space S, class T, class Change>
inline T atomic(Thread& self, u64 address, u32 access, Change change, Site site) {
    void* memory = reach<S>(self, address, sizeof(T), kRead | kWrite | kStrong | access, site);
    T before, after;
    memcpy(&before, memory, sizeof(T));
    after = change(before);
    memcpy(memory, &after, sizeof(T));
    atomic_done(self, address, memcmp(&before, &after, sizeof(T)) != 0, access, site);
    return before;
}

// --- asynchronous copies from global to shared memory (PTX ISA 9.7.9.25) --------------------------------------------

void copy_async(Thread& self, u64 shared, u64 global, u32 bytes, u32 valid, Site site);
void copy_async_commit(Thread& self);
void copy_async_wait(Thread& self, u32 newest);  // all but the `newest` latest groups land
void copy_async_wait_all(Thread& self);

// --- address spaces -------------------------------------------------------------------------------------------------

inline u64 shared_to_generic(Thread& self, u64 address) { return self.shared_window + address; }
inline u64 generic_to_shared(Thread& self, u64 address) { return address - self.shared_window; }
u64 generic_to_cluster(Thread& self, u64 address);
u64 cluster_to_generic(Thread& self, u64 address);
bool is_shared(Thread& self, u64 address);
bool is_in_cluster(Thread& self, u64 address);  // shared memory of any block of the cluster
bool is_local(Thread& self, u64 address);
bool is_constant(Thread& self, u64 address);
inline bool is_global(Thread& self, u64 a) { return !is_shared(self, a) && !is_local(self, a) && !is_constant(self, a); }

}  // namespace sim
