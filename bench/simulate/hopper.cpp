// mbarriers: arrivals and bytes that complete a phase, and the copies they wait for.
#include "hopper.hpp"

#include <unordered_map>

#include "asynchronous.hpp"

namespace sim {

namespace {

constexpr u32 kMostPending = (1u << 20) - 1;  // of arrivals, and of bytes either way
constexpr u64 kMark = 0x6d62617272696572ull;  // what the 8 bytes hold: a store over them shows

struct PhaseBarrier {
    u32 expected = 0;  // arrivals that complete a phase
    u32 pending = 0;   // of which are still missing
    s64 bytes = 0;     // announced and not yet copied
    u32 phase = 0;
    Thread* maker = nullptr;
    u32 made = 0;         // when, as fences of the async proxy are counted
    bool shown = false;   // to that proxy, by fence.mbarrier_init
    u32 announced = ~0u;  // the cluster's barriers at which its maker had arrived, when it announced it
    std::vector<Fiber*> waiters;
    std::vector<Flight> flights;
    SyncPoint arriving, completed[2];  // of the running phase, and of the last one of each parity
};

struct HopperState {
    std::unordered_map<u32, PhaseBarrier> barriers;  // by shared address

    void begin() { barriers.clear(); }
};
OfMemory<HopperState> here;

[[noreturn]] void bad_mbarrier(const Thread& self, u64 address, const std::string& what, Site site) {
    fail("mbarrier", text("mbarrier at shared byte %llu", static_cast<unsigned long long>(address)) + whose_memory() + ": " +
                         what + ", " + where(site) + ", " + who(self));
}

PhaseBarrier& find(Thread& self, u64 address, Site site) {
    check_shared(self, address, sizeof kMark, sizeof kMark, kRead | kWrite, site);
    auto found = here->barriers.find(static_cast<u32>(address));
    if (found == here->barriers.end()) bad_mbarrier(self, address, "used without mbarrier.init", site);
    if (memcmp(machine.arena + address, &kMark, sizeof kMark))
        bad_mbarrier(self, address, "something else was written over it", site);
    // Whoever uses it must know of its initialisation; users do not race with each other.
    const bool told = self.fiber->cluster_waits > found->second.announced;
    const u32 access = (kRead | kStrong) | (told ? u32{kAnnounced} : 0);
    if (machine.races) race_access(self, true, address, sizeof kMark, access, site);
    return found->second;
}

void wake_all(PhaseBarrier& barrier) {
    std::vector<Fiber*> waiters;
    waiters.swap(barrier.waiters);
    for (Fiber* fiber : waiters) wake(*fiber);
}

void settle(PhaseBarrier& barrier) {
    if (barrier.pending || barrier.bytes) return;
    barrier.completed[barrier.phase % 2] = barrier.arriving;
    barrier.arriving = SyncPoint();
    barrier.phase++;
    barrier.pending = barrier.expected;
    stirred();
    memory_changed();
    wake_all(barrier);
}

void count_bytes(Thread& self, PhaseBarrier& barrier, u64 address, s64 bytes, Site site) {
    barrier.bytes += bytes;
    if (barrier.bytes > kMostPending || -barrier.bytes > kMostPending) {
        bad_mbarrier(self, address,
                     text("%lld bytes expected, more than it can count", static_cast<long long>(barrier.bytes)), site);
    }
}

void count_arrivals(Thread& self, PhaseBarrier& barrier, u64 address, u32 arrivals, Site site) {
    if (arrivals > barrier.pending) {
        bad_mbarrier(self, address,
                     text("more arrivals in one phase than the %u it counts", barrier.expected), site);
    }
    barrier.pending -= arrivals;
}

void land(PhaseBarrier& barrier, u64 address, Flight flight, Site site) {
    Thread& issuer = *flight.issuer;
    flight.land();
    if (machine.races) race_release(issuer, barrier.arriving);
    count_bytes(issuer, barrier, address, -static_cast<s64>(flight.bytes), site);
    count_arrivals(issuer, barrier, address, flight.arrivals, site);
    settle(barrier);
}

// One of the copies that this barrier waits for, in any order; false where there is none.
bool land_one(PhaseBarrier& barrier, u64 address, Site site) {
    if (barrier.flights.empty()) return false;
    size_t chosen = machine.seed ? random_number() % barrier.flights.size() : 0;
    Flight flight = std::move(barrier.flights[chosen]);
    barrier.flights.erase(barrier.flights.begin() + static_cast<std::ptrdiff_t>(chosen));
    land(barrier, address, std::move(flight), site);
    return true;
}

// try_wait may give up at any time; in other orders than the first it does so now and then.
bool gives_up() { return machine.seed && random_number() % 4 == 0; }

// Only a block's own threads may make, unmake and wait for its mbarriers.
u64 own(Thread& self, u64 address, const char* what, Site site) {
    if (rank_of(self, address) != self.rank && address >> kRankShift <= kMaxRanks) {
        fail("cluster", text("%s an mbarrier of another block, of rank %u: only its own threads may, ", what, rank_of(self, address)) +
                            where(site) + ", " + who(self));
    }
    return address >> kRankShift <= kMaxRanks ? offset_of(address) : address;
}

}  // namespace

void take_off(Thread& self, u64 address, Flight flight, Site site) {
    PhaseBarrier& barrier = find(self, address, site);
    if (lands_at_once()) {
        land(barrier, address, std::move(flight), site);
    } else {
        barrier.flights.push_back(std::move(flight));
        memory_changed();
        wake_all(barrier);
    }
    stirred();
}

// A note and no error: the manual wants the fence, and published kernels that do without are not seen to fail.
void check_shown(Thread& self, u64 address, Site site) {
    PhaseBarrier& barrier = find(self, address, site);
    const Thread& maker = *barrier.maker;
    if (barrier.shown || barrier.made < fenced_at(maker) || barrier.made < fenced_at(self)) return;
    remark("unfenced barrier", where(site), text("the mbarrier at shared byte %llu", static_cast<unsigned long long>(address)) + whose_memory() +
                                   " counts the bytes of a copy by the async proxy, which was not shown it: fence.mbarrier_init or "
                                   "fence.proxy.async comes after mbarrier.init, " + where(site) + ", " + who(self));
    barrier.shown = true;
}

void expect_arrivals(Thread& self, u64 address, u32 more, Site site) {
    PhaseBarrier& barrier = find(self, address, site);
    barrier.pending += more;
    if (barrier.pending > kMostPending) bad_mbarrier(self, address, "more arrivals pending than it can count", site);
}

void mbarrier_init(Thread& self, u64 address, u32 count, Site site) {
    address = own(self, address, "initialises", site);
    check_shared(self, address, sizeof kMark, sizeof kMark, kWrite, site);
    if (!count || count > kMostPending) bad_mbarrier(self, address, text("initialised for %u arrivals", count), site);
    if (here->barriers.count(static_cast<u32>(address)))
        bad_mbarrier(self, address, "initialised again without mbarrier.inval", site);
    memcpy(reach_shared(self, address, sizeof kMark, kWrite, site), &kMark, sizeof kMark);
    PhaseBarrier& barrier = here->barriers[static_cast<u32>(address)];
    barrier.expected = barrier.pending = count;
    barrier.maker = &self;
    barrier.made = fences_so_far();
}

void mbarrier_invalidate(Thread& self, u64 address, Site site) {
    address = own(self, address, "invalidates", site);
    PhaseBarrier& barrier = find(self, address, site);
    if (!barrier.waiters.empty()) bad_mbarrier(self, address, "invalidated while threads wait for it", site);
    if (!barrier.flights.empty()) bad_mbarrier(self, address, "invalidated before a copy has landed", site);
    const u64 nothing = ~0ull;
    memcpy(reach_shared(self, address, sizeof nothing, kWrite, site, &nothing), &nothing, sizeof nothing);
    here->barriers.erase(static_cast<u32>(address));
}

void mbarrier_announce(Thread& self) {
    for (auto& entry : here->barriers) {
        PhaseBarrier& barrier = entry.second;
        if (barrier.maker == &self) barrier.shown = true;
        if (barrier.maker == &self && barrier.announced == ~0u) barrier.announced = self.fiber->cluster_arrivals;
    }
}

void mbarrier_expect(Thread& self, u64 address, u32 bytes, Site site) {
    Reach there(self, address, site);
    address = offset_of(address);
    PhaseBarrier& barrier = find(self, address, site);
    count_bytes(self, barrier, address, bytes, site);
    settle(barrier);
}

void mbarrier_complete(Thread& self, u64 address, u32 bytes, Site site) {
    Reach there(self, address, site);
    address = offset_of(address);
    PhaseBarrier& barrier = find(self, address, site);
    count_bytes(self, barrier, address, -static_cast<s64>(bytes), site);
    settle(barrier);
}

u64 mbarrier_arrive(Thread& self, u64 address, u32 arrivals, u32 expected_bytes, u32 order, Site site, Arrival kind) {
    Reach there(self, address, site);
    address = offset_of(address);
    PhaseBarrier& barrier = find(self, address, site);
    const bool drops = kind == Arrival::Drop || kind == Arrival::DropNoComplete;
    if (drops && arrivals > barrier.expected) {
        bad_mbarrier(self, address, text("%u leave that count %u arrivals", arrivals, barrier.expected), site);
    }
    if (kind >= Arrival::NoComplete && arrivals >= barrier.pending)
        bad_mbarrier(self, address, "an arrival with .noComplete completes the phase", site);
    if (drops) barrier.expected -= arrivals;
    u64 state = static_cast<u64>(barrier.pending) << 1 | (barrier.phase & 1);
    count_bytes(self, barrier, address, expected_bytes, site);
    if (machine.races && order & kRelease) race_release(self, barrier.arriving, order & kBlockScope);
    if (machine.races && !(order & kRelease)) race_meet(self, barrier.arriving);
    count_arrivals(self, barrier, address, arrivals, site);
    stirred();
    settle(barrier);
    return state;
}

bool mbarrier_test(Thread& self, u64 address, u32 parity, u32 order, bool blocks, Site site) {
    address = own(self, address, "waits for", site);
    for (;;) {
        PhaseBarrier& barrier = find(self, address, site);
        if (barrier.phase % 2 != parity % 2) {
            if (machine.races && order & kAcquire) race_acquire(self, barrier.completed[parity % 2], order & kBlockScope);
            return true;
        }
        if (land_one(barrier, address, site)) continue;
        if (!blocks || gives_up()) {
            self.fiber->seen.address = address;  // for the deadlock report
            yield_to_others(site);
            return false;
        }
        barrier.waiters.push_back(self.fiber);
        park("waits for an mbarrier", site);
    }
}

}  // namespace sim
