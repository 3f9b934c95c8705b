// Warp operations: lanes arrive one by one, and the last one does the work of all (PTX ISA 9.7.9 and 9.7.13).
#include "machine.hpp"

#include <algorithm>
#include <cmath>

namespace sim {

namespace {

std::string lanes_text(u32 mask) {
    u32 lane = static_cast<u32>(__builtin_ctz(mask));
    return __builtin_popcount(mask) == 1 ? text("lane %u", lane) : text("lanes 0x%08x", mask);
}

// Two lanes that each wait for the other must wait in one operation. Where but one does, the other's comes first: some
// lanes shuffle among themselves while the rest is at the barrier behind it.
void check_mask(const Warp& warp, u32 lane, const Fiber& other, u32 other_lane) {
    const Fiber& fiber = warp.fibers[lane];
    if (!(fiber.mask >> other_lane & 1) || !(other.mask >> lane & 1)) return;
    if (fiber.operation != other.operation) {
        fail("warp operation", "lanes of one warp meet in different operations: " + who(fiber.thread) + " in " +
                                   fiber.operation->name + ", " + where(fiber.site) + "; " + thread_name(other.thread.index) +
                                   " in " + other.operation->name + ", " + where(other.site));
    }
    if (fiber.mask != other.mask) {
        fail("warp operation", "lanes of one warp meet with different masks: " + who(fiber.thread) +
                                   text(" with 0x%08x, ", fiber.mask) + where(fiber.site) + "; " +
                                   thread_name(other.thread.index) + text(" with 0x%08x, ", other.mask) + where(other.site));
    }
}

void perform(Warp& warp, u32 mask, u32 present) {
    u32 first = static_cast<u32>(__builtin_ctz(present));
    const Fiber& fiber = warp.fibers[first];
    const Operation& operation = *fiber.operation;
    std::string at;
    u32 exited = mask & warp.existing & ~warp.live;
    if (operation.whole_warp && present != kAllLanes) {
        fail("warp operation", std::string(operation.name) + " needs all 32 lanes, but only " + lanes_text(present) +
                                   " take part, " + where(fiber.site) + ", " + who(fiber.thread));
    }
    // CUDA waits only for lanes that have not returned, so this is no deadlock; but what such a kernel computes leans on
    // lanes that are gone. __syncwarp exchanges nothing, and may name them.
    if (exited && !operation.exited_allowed) {
        const Fiber& gone = warp.fibers[__builtin_ctz(exited)];
        fail("warp operation", text("%s names %s in its mask 0x%08x, which returned at ", operation.name,
                                    lanes_text(exited).c_str(), mask) + where(gone.thread.exit_site) + "; " +
                                   where(fiber.site) + ", " + who(fiber.thread));
    }
    warp.waiting &= ~present;
    operation.perform(Lanes{warp, present});
    each_lane(present, [&](u32 lane) { wake(warp.fibers[lane]); });
}

}  // namespace

void try_operation(Warp& warp, u32 mask) {
    u32 wanted = mask & warp.live;
    if (!wanted || (warp.waiting & wanted) != wanted) return;
    u32 first = static_cast<u32>(__builtin_ctz(wanted));
    bool all_agree = !warp.alike || warp.fibers[first].mask == mask;
    if (!warp.alike) each_lane(wanted, [&](u32 lane) {
        check_mask(warp, first, warp.fibers[lane], lane);
        all_agree &= warp.fibers[lane].mask == mask;  // else a lane waits for an operation without the others first
    });
    if (all_agree) perform(warp, mask, wanted);
}

void collective(Thread& self, const Operation& operation, u32 mask, void* payload, Site site) {
    Fiber& fiber = *self.fiber;
    Warp& warp = machine.warps[self.warp];
    if (!(mask >> self.lane & 1)) {
        fail("warp operation", text("%s by lane %u, which is not in its own mask 0x%08x, ", operation.name, self.lane, mask) +
                                   where(site) + ", " + who(self));
    }
    fiber.operation = &operation;
    fiber.mask = mask;
    fiber.payload = payload;
    begin_wait(State::Warp, operation.name, site);
    if (!warp.waiting) warp.alike = true;
    else if (warp.alike) {
        const Fiber& other = warp.fibers[__builtin_ctz(warp.waiting)];
        warp.alike = other.operation == &operation && other.mask == mask;
    }
    if (!warp.alike) each_lane(warp.waiting & mask, [&](u32 lane) { check_mask(warp, lane, fiber, self.lane); });
    warp.waiting |= 1u << self.lane;
    try_operation(warp, mask);
    run_another();
}

// --- __syncwarp: the only warp operation that orders memory ---------------------------------------------------------
// CUDA's guide says of shuffles, votes, match and reduce: "these intrinsics do not imply a memory barrier", so the race
// checker takes an exchange through memory that only a shuffle separates for the race that it is.

namespace {

void perform_sync(const Lanes& lanes) {
    if (machine.races) race_warp_sync(lanes);
}
const Operation kSync{"bar.warp.sync", perform_sync, false, true};

// --- shfl.sync ------------------------------------------------------------------------------------------------------

struct Shuffled {
    u32 value, result;
    u32 source;
};

void perform_shuffle(const Lanes& lanes) {
    each_lane(lanes.mask, [&](u32 lane) {
        auto& mine = lanes.of<Shuffled>(lane);
        if (!(lanes.mask >> mine.source & 1)) {
            const char* why = lanes.warp.existing >> mine.source & 1 ? "is not in the mask" : "does not exist in this block";
            fail("warp operation", text("shuffle from lane %u, which %s, ", mine.source, why) + where(lanes.site(lane)) +
                                       ", " + who(lanes.thread(lane)));
        }
        mine.result = lanes.of<Shuffled>(mine.source).value;
    });
    if (machine.races && value_of(lanes.site(static_cast<u32>(__builtin_ctz(lanes.mask)))) == Value::F32) {
        f32 largest = 0;
        each_lane(lanes.mask, [&](u32 lane) {
            f32 value = __builtin_bit_cast(f32, lanes.of<Shuffled>(lane).value);
            if (std::isfinite(value)) largest = std::max(largest, std::fabs(value));
        });
        race_exchange(lanes, largest);
    }
}
const Operation kShuffle{"shfl.sync", perform_shuffle};

// --- vote.sync, match.sync, redux.sync, elect.sync ------------------------------------------------------------------

struct Voted {
    bool value;
    u32 result;  // the lanes that say true
};

void perform_vote(const Lanes& lanes) {
    u32 ballot = 0;
    each_lane(lanes.mask, [&](u32 lane) { ballot |= static_cast<u32>(lanes.of<Voted>(lane).value) << lane; });
    each_lane(lanes.mask, [&](u32 lane) { lanes.of<Voted>(lane).result = ballot; });
}
const Operation kVote{"vote.sync", perform_vote};

struct Matched {
    u64 value;
    u32 result;  // the lanes with the same value
};

void perform_match(const Lanes& lanes) {
    each_lane(lanes.mask, [&](u32 lane) {
        auto& mine = lanes.of<Matched>(lane);
        mine.result = 0;
        each_lane(lanes.mask, [&](u32 other) {
            mine.result |= static_cast<u32>(lanes.of<Matched>(other).value == mine.value) << other;
        });
    });
}
const Operation kMatch{"match.sync", perform_match};

struct Reduced {
    Reduce kind;
    u32 value;
};

u32 combine(Reduce kind, u32 a, u32 b) {
    s32 x = static_cast<s32>(a), y = static_cast<s32>(b);
    switch (kind) {
        case Reduce::Add: return a + b;
        case Reduce::MinSigned: return x < y ? a : b;
        case Reduce::MaxSigned: return x > y ? a : b;
        case Reduce::MinUnsigned: return a < b ? a : b;
        case Reduce::MaxUnsigned: return a > b ? a : b;
        case Reduce::And: return a & b;
        case Reduce::Or: return a | b;
        default: return a ^ b;
    }
}

void perform_reduce(const Lanes& lanes) {
    u32 first = static_cast<u32>(__builtin_ctz(lanes.mask));
    u32 result = lanes.of<Reduced>(first).value;
    Reduce kind = lanes.of<Reduced>(first).kind;
    each_lane(lanes.mask & (lanes.mask - 1), [&](u32 lane) { result = combine(kind, result, lanes.of<Reduced>(lane).value); });
    each_lane(lanes.mask, [&](u32 lane) { lanes.of<Reduced>(lane).value = result; });
}
const Operation kReduce{"redux.sync", perform_reduce};

void perform_nothing(const Lanes&) {}
const Operation kElect{"elect.sync", perform_nothing};

}  // namespace

void sync_warp(Thread& self, u32 mask, Site site) { collective(self, kSync, mask, nullptr, site); }

u32 shuffle(Thread& self, Shuffle mode, u32 value, u32 b, u32 c, u32 mask, bool* in_range, Site site) {
    u32 lane = self.lane, offset = b & 31, clamp = c & 31, segment = c >> 8 & 31;
    u32 highest = (lane & segment) | (clamp & ~segment), lowest = lane & segment;
    s32 source = 0;
    bool valid = false;
    switch (mode) {
        case Shuffle::Up:
            source = static_cast<s32>(lane - offset);
            valid = source >= static_cast<s32>(highest);
            break;
        case Shuffle::Down:
            source = static_cast<s32>(lane + offset);
            valid = source <= static_cast<s32>(highest);
            break;
        case Shuffle::Butterfly:
            source = static_cast<s32>(lane ^ offset);
            valid = source <= static_cast<s32>(highest);
            break;
        case Shuffle::Index:
            source = static_cast<s32>(lowest | (offset & ~segment));
            valid = source <= static_cast<s32>(highest);
            break;
    }
    if (in_range) *in_range = valid;
    Shuffled mine{value, 0, valid ? static_cast<u32>(source) : lane};
    collective(self, kShuffle, mask, &mine, site);
    return mine.result;
}

u32 vote(Thread& self, Vote kind, bool value, u32 mask, Site site) {
    Voted mine{value, 0};
    collective(self, kVote, mask, &mine, site);
    u32 present = mask & machine.warps[self.warp].existing;
    switch (kind) {
        case Vote::All: return mine.result == present;
        case Vote::Any: return mine.result != 0;
        case Vote::Uniform: return mine.result == present || mine.result == 0;
        default: return mine.result;
    }
}

u32 match_any(Thread& self, u64 value, u32 mask, Site site) {
    Matched mine{value, 0};
    collective(self, kMatch, mask, &mine, site);
    return mine.result;
}

u32 match_all(Thread& self, u64 value, u32 mask, bool* same, Site site) {
    u32 matched = match_any(self, value, mask, site), present = mask & machine.warps[self.warp].existing;
    *same = matched == present;
    return *same ? present : 0;
}

u32 reduce(Thread& self, Reduce kind, u32 value, u32 mask, Site site) {
    Reduced mine{kind, value};
    collective(self, kReduce, mask, &mine, site);
    return mine.value;
}

u32 elect(Thread& self, u32 mask, bool* elected, Site site) {
    collective(self, kElect, mask, nullptr, site);
    u32 leader = static_cast<u32>(__builtin_ctz(mask & machine.warps[self.warp].existing));
    if (elected) *elected = self.lane == leader;
    return leader;
}

// --- activemask: the lanes that run this instruction together -------------------------------------------------------
// The hardware decides; here a lane waits until nobody else can run, and all who came to the same instruction are active.

u32 active_mask(Thread& self, Site site) {
    u32 result = 0;
    self.fiber->payload = &result;
    machine.active_requests++;
    begin_wait(State::Active, "waits in activemask", site);
    run_another();
    return result;
}

void settle_active_masks() {
    machine.active_requests = 0;
    for (Warp& warp : machine.warps) {
        u32 asking = 0;
        each_lane(warp.live, [&](u32 lane) { asking |= static_cast<u32>(warp.fibers[lane].state == State::Active) << lane; });
        while (asking) {
            Site site = warp.fibers[__builtin_ctz(asking)].site;
            u32 together = 0;
            each_lane(asking, [&](u32 lane) { together |= static_cast<u32>(warp.fibers[lane].site == site) << lane; });
            each_lane(together, [&](u32 lane) {
                *static_cast<u32*>(warp.fibers[lane].payload) = together;
                wake(warp.fibers[lane]);
            });
            asking &= ~together;
        }
    }
}

}  // namespace sim
