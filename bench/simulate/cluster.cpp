// Clusters: blocks that are in flight together, reach each other's shared memory, and meet at a barrier of their own.
//
// Each block keeps its own fibers, barriers and clocks. A thread that reaches into another block's shared memory visits
// it (Reach): as long as that lasts, the machine's shared memory, and what is kept of it, is the other block's.
#include "cluster.hpp"

#include "asynchronous.hpp"

namespace sim {

namespace {

[[noreturn]] void bad_cluster(const Thread& self, const std::string& what, Site site) {
    fail("cluster", what + ", " + where(site) + ", " + who(self));
}

void check_rank(const Thread& self, u32 rank, Site site) {
    if (rank < machine.cluster_blocks) return;
    bad_cluster(self, text("rank %u in a cluster of %u block%s", rank, machine.cluster_blocks, machine.cluster_blocks > 1 ? "s" : ""), site);
}

Slot& host_of(Thread& self, u64 address, Site site) {
    if (address >> kRankShift > kMaxRanks) check_shared(self, address, 1, 1, kRead, site);  // out of bounds, it says
    const u32 rank = rank_of(self, address);
    check_rank(self, rank, site);
    Slot& host = *self.fiber->slot->cluster->members[rank];
    if (rank == self.rank) return host;
    if (has_ended(host)) {
        bad_cluster(self, "reaches shared memory of " + block_name(host.block.block_serial) + ", which has ended: it must be there until the last access", site);
    }
    if (machine.races && !race_has_begun(self, rank)) {
        bad_cluster(self, "reaches shared memory of " + block_name(host.block.block_serial) +
                              " without knowing that it has begun: a barrier of the cluster comes first", site);
    }
    return host;
}

}  // namespace

u32 rank_of(const Thread& self, u64 address) {
    const u64 above = address >> kRankShift;
    return above ? static_cast<u32>(above - 1) : self.rank;
}

u64 mapped(u32 rank, u64 offset) { return static_cast<u64>(rank + 1) << kRankShift | offset; }

Reach::Reach(Thread& self, u64 address, Site site) : rank(rank_of(self, address)), visit_(host_of(self, address, site)) {}

u64 map_to_rank(Thread& self, u64 address, u32 rank, Site site) {
    check_rank(self, rank, site);
    return mapped(rank, offset_of(address));
}

u64 map_generic_to_rank(Thread& self, u64 address, u32 rank, Site site) {
    if (!is_in_cluster(self, address)) bad_cluster(self, "mapa of an address that is not one of shared memory", site);
    return cluster_to_generic(self, map_to_rank(self, generic_to_cluster(self, address), rank, site));
}

u32 rank_of_address(Thread& self, u64 address, Site site) {
    check_rank(self, rank_of(self, address), site);
    return rank_of(self, address);
}

u32 rank_of_generic(Thread& self, u64 address, Site site) {
    if (!is_in_cluster(self, address)) bad_cluster(self, "getctarank of an address that is not one of shared memory", site);
    return rank_of(self, generic_to_cluster(self, address));
}

// --- the cluster's barrier: for all its threads that have not returned ----------------------------------------------

namespace {

const Operation kArrive{"barrier.cluster.arrive.aligned", [](const Lanes&) {}, false, true};
const Operation kWait{"barrier.cluster.wait.aligned", [](const Lanes&) {}, false, true};

void meet_lanes(Thread& self, const Operation& operation, Site site) {
    collective(self, operation, machine.warps[self.warp].existing, nullptr, site);
}

void open_when_complete(Cluster& cluster) {
    if (cluster.missing) return;
    cluster.completed = std::move(cluster.arriving);
    cluster.arriving = SyncPoint();
    cluster.phase++;
    cluster.missing = cluster.threads;
    stirred();
    std::vector<Fiber*> waiters;
    waiters.swap(cluster.waiters);
    for (Fiber* fiber : waiters) wake(*fiber);
}

bool waits_for(const Cluster& cluster, const Fiber& fiber) {
    return !fiber.met_cluster || fiber.cluster_phase != cluster.phase;
}

[[noreturn]] void bad_barrier(const Thread& self, const char* what, Site site) {
    fail("barrier", std::string(what) + ", " + where(site) + ", " + who(self));
}

}  // namespace

void cluster_arrive(Thread& self, bool releases, bool aligned, Site site) {
    if (aligned) meet_lanes(self, kArrive, site);
    Cluster& cluster = *machine.cluster;
    Fiber& fiber = *self.fiber;
    if (fiber.met_cluster) bad_barrier(self, "barrier.cluster.arrive again, without barrier.cluster.wait between", site);
    fiber.met_cluster = true;
    fiber.cluster_arrivals++;
    fiber.cluster_phase = cluster.phase;
    if (machine.races) {
        if (releases) race_release(self, cluster.arriving, kClusterScope);
        else race_meet(self, cluster.arriving);
    }
    stirred();
    cluster.missing--;
    open_when_complete(cluster);
}

void cluster_wait(Thread& self, bool aligned, Site site) {
    if (aligned) meet_lanes(self, kWait, site);
    Cluster& cluster = *machine.cluster;
    Fiber& fiber = *self.fiber;
    if (!fiber.met_cluster) bad_barrier(self, "barrier.cluster.wait without barrier.cluster.arrive before it", site);
    if (fiber.cluster_phase == cluster.phase) {
        cluster.waiters.push_back(&fiber);
        park("waits at the cluster's barrier", site);
    }
    fiber.met_cluster = false;
    fiber.cluster_waits++;
    if (machine.races) race_acquire(self, cluster.completed, kClusterScope);
}

void cluster_lost_thread(Fiber& fiber) {
    Cluster& cluster = *machine.cluster;
    cluster.threads--;
    if (!waits_for(cluster, fiber)) return;
    cluster.missing--;
    open_when_complete(cluster);
}

void cluster_ended_block() {
    machine.cluster->blocks--;
    if (machine.races && machine.cluster_blocks > 1) race_block_ends();
}

// --- asynchronous writes (cluster_async.cpp) ------------------------------------------------------------------------

// What an asynchronous write needs: an mbarrier in the same block as what it writes.
void check_same_block(const Thread& self, u64 to, u64 barrier, Site site) {
    if (rank_of(self, to) == rank_of(self, barrier)) return;
    bad_cluster(self, text("writes to the block of rank %u, but its mbarrier is of rank %u", rank_of(self, to), rank_of(self, barrier)), site);
}

}  // namespace sim
