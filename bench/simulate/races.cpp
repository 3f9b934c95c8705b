// The race checker: two accesses of which one writes, and neither happens before the other, are reported with both lines.
//
// Time. Each thread has a clock that ticks when it lets others know what it did. An access remembers block, thread and
// clock; it happened before what thread t does now, if t has heard of a later clock of that thread. What is heard is kept
//   for the whole block  `floor`         after __syncthreads(): every access with an earlier clock has happened
//   per warp and warp    `warp_known`    after a named barrier, mbarrier, or release and acquire
//   per thread and lane  `lane_known`    after __syncwarp()
// Clocks of warps are coarse on purpose: they may take two lanes' accesses for ordered that are not (a race missed), and
// never the other way round.
//
// Blocks. Accesses of different blocks conflict, unless a release (a fence, then an atomic) and an acquire of the same
// address order them, as in "the last block to finish adds up" and under a lock. What a release lets know is a snapshot
// of the clocks, by warp, up to which the releasing thread knows its own block; `heard` keeps the latest of each block.
//
// Memory. Each granule of memory remembers its last write and two reads. Granules are 4 bytes; a page that sees a smaller
// access is split, so neighbours in one word are never mixed up. A write that changes nothing is not looked at: all
// threads may store the same value, which is common and harmless.
//
// Clusters. Blocks of a cluster conflict on their shared memory too, and are ordered by its barrier and by mbarriers.
// What a thread knows of the other blocks of its cluster is kept by warp and rank, and let known with what it knows of
// its own. A block's end is an access to all of its shared memory.
//
// Rounding. After a reduction all lanes of a warp may store its result to one word. Where a product is fused into the
// reduction's first sum (a compiler's choice), a lane rounds its own product away and takes its neighbour's rounded, so
// that the lanes' results differ in their last bits. Which of them stays is not defined; that it is one of them is. So
// stores by one execution of one instruction by one warp that differ by no more than rounding are remarked, not reported.
// Where a tile is smaller than the block, whole warps hold the same as others: what they store is compared lane by lane at
// the next barrier. If all lanes agree, two warps differ only as two lanes of one do; else it is a race of two warps.
#include "machine.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <unordered_map>

#include "arithmetic.hpp"

namespace sim {

namespace {

constexpr u32 kPageBytes = 4096;
constexpr u32 kPageCache = 1024;
constexpr u64 kShadowLimit = 256ull << 20;  // bytes of records kept from launch to launch
constexpr u32 kLastSerial = 0xf0000000u;    // serial numbers of blocks begin anew before they overflow

struct Record {
    u32 block;  // serial number; 0: none
    u32 clock;
    u32 rest;   // packed by hand: a store of bit fields, and a load of them all, is slow

    u32 thread() const { return rest & (kMaxThreads - 1); }
    bool strong() const { return rest & kMaxThreads; }
    bool is_volatile() const { return rest & kMaxThreads * 2; }
    u32 site() const { return rest / (kMaxThreads * 4); }
    bool is_by(const Record& other) const { return block == other.block && !((rest ^ other.rest) & (kMaxThreads - 1)); }
};

struct Cell {
    Record write{}, read{}, earlier_read{};
    u32 execution = 0;  // the how-manieth of its instruction by its thread the write was
};

struct Page {
    u32 shift = 2;  // granules of 1 << shift bytes
    std::vector<Cell> cells{std::vector<Cell>(kPageBytes >> 2)};

    // Every record so far covered whole granules, so each half inherits it.
    void split(u32 to) {
        std::vector<Cell> finer(kPageBytes >> to);
        for (size_t i = 0; i < finer.size(); i++) finer[i] = cells[i >> (shift - to)];
        cells.swap(finer);
        shift = to;
    }
};

struct CachedPage {
    u64 number = ~0ull;
    Page* page = nullptr;
};

// What the first of several lanes stored, before others stored over it.
struct FirstStore {
    Site site = 0;
    u32 execution = 0;
    u8 bytes[32];
};

// What a thread stored last by one instruction.
struct LastStore {
    u32 block = 0, execution = 0;
    u64 address = 0;
    u8 value[16];
};

// Two warps that stored to one word what may be the same in each lane of both.
struct Suspects {
    u32 number, execution, warps[2], bytes;
    u64 address;
    std::string place, as_race, as_rounding;
};

// What is known of a block's shared memory.
struct SharedState {
    std::vector<Page> pages;
    std::unordered_map<u64, SyncPoint> points;  // by address
    u32 generation = 0;  // of serial numbers

    void begin();
};
OfMemory<SharedState> memory;

struct RaceState {
    u32 floor_clock = 0;
    u32 clocks[kMaxThreads];
    u32 lane_known[kMaxThreads][kWarp];
    u32 warp_known[kMaxWarps][kMaxWarps];
    u32 fenced[kMaxThreads];     // the widest fence that the thread has made
    std::vector<u32> heard;      // by block of this launch: the snapshot that this block has acquired, or 0
    // Of the other blocks of a cluster, by rank: what all warps know, what one does (warp * blocks + rank); and which
    // are known to have begun, a bit for each.
    std::vector<Clocks> ranks_floor, ranks_known;
    u32 begun_floor, begun[kMaxWarps];
    u32 last_others[kMaxWarps];   // of the warp's last snapshot
    f32 exchanged[kMaxWarps][2];  // the largest float that lanes handed each other: since the last barrier, and before,
                                  // where there was one
    std::vector<u32> executions;  // by float store and thread
    std::unordered_map<u64, FirstStore> first_stores;  // by address, where lanes have differed
    std::vector<LastStore> last_stores;  // by float store and thread
    std::vector<Suspects> suspects;

    void begin();
};
OfBlock<RaceState> here;

enum Fenced : u32 { kUnfenced, kForBlock, kForCluster, kForAll };

std::unordered_map<u64, Page> global_pages;
CachedPage page_cache[kPageCache];
u32 generation = 0;
bool synchronises = false;        // some thread of this launch has used a fence, release or acquire
std::unordered_map<u64, SyncPoint> points;  // by global address
std::vector<u32> store_of_site;   // float stores are numbered from 1, to count their executions
u32 float_stores = 0;

// What a thread knew of its block when it released: of the other warps, and of its own. The first is of nothing.
struct Snapshot {
    u32 others, warp, clock;
};
std::vector<Clocks> others;       // of this launch
std::vector<Snapshot> snapshots;  // of this launch
size_t heard_entries = 0;
constexpr size_t kMostStores = 1u << 18;  // float stores times threads; above it, warps are not compared lane by lane
constexpr size_t kMostHeard = 64u << 20;  // above it, no race between blocks is looked for any more in this launch

u32 clock_in(u32 snapshot, u32 warp) {
    const Snapshot& s = snapshots[snapshot];
    return warp == s.warp ? s.clock : others[s.others][warp];
}

Page& page_of(bool shared, u64 address) {
    u64 number = address / kPageBytes;
    if (shared) {
        if (number >= memory->pages.size()) memory->pages.resize(number + 1);
        return memory->pages[number];
    }
    CachedPage& cached = page_cache[number % kPageCache];
    if (cached.number != number) cached = {number, &global_pages[number]};
    return *cached.page;
}

u32 ordinal(u32 block) { return block - machine.first_block_serial; }

u32& at(std::vector<u32>& heard, u32 block) {
    if (heard.size() <= block) heard_entries += block + 1 - heard.size(), heard.resize(block + 1);
    return heard[block];
}

// The later of two snapshots of one block; a new one where neither is.
u32 joined(u32 a, u32 b) {
    if (a == b || !b) return a;
    if (!a) return b;
    const Snapshot x = snapshots[a], y = snapshots[b];
    if (x.others == y.others && x.warp == y.warp) return x.clock >= y.clock ? a : b;
    Clocks both;
    for (u32 w = 0; w < kMaxWarps; w++) both[w] = std::max(clock_in(a, w), clock_in(b, w));
    others.push_back(both);
    snapshots.push_back({static_cast<u32>(others.size() - 1), x.warp, both[x.warp]});
    return static_cast<u32>(snapshots.size() - 1);
}

void join(std::vector<u32>& into, const std::vector<u32>& from) {
    if (!from.empty()) at(into, static_cast<u32>(from.size() - 1));
    for (size_t i = 0; i < from.size(); i++) {
        if (into[i] != from[i]) into[i] = joined(into[i], from[i]);
    }
}

// Up to which clock of each warp of its own block this thread knows what happened, after letting its own be known.
Clocks release_clocks(RaceState& its, const Thread& self) {
    Clocks known;
    for (u32 w = 0; w < kMaxWarps; w++) known[w] = std::max(its.warp_known[self.warp][w], its.floor_clock);
    u32& own = known[self.warp];
    own = std::max(own, ++its.clocks[self.index]);
    for (u32 lane = 0; lane < kWarp; lane++) own = std::max(own, its.lane_known[self.index][lane]);
    return known;
}

// That as a snapshot: most of them differ from the warp's last one by its own clock alone.
u32 snapshot(RaceState& its, const Thread& self, Clocks known) {
    u32 clock = known[self.warp], &last = its.last_others[self.warp];
    known[self.warp] = 0;
    if (!last || others[last] != known) {
        others.push_back(known);
        last = static_cast<u32>(others.size() - 1);
    }
    snapshots.push_back({last, self.warp, clock});
    return static_cast<u32>(snapshots.size() - 1);
}

template <class Known>
void learn(RaceState& its, Thread& self, Known known) {
    for (u32 w = 0; w < kMaxWarps; w++) its.warp_known[self.warp][w] = std::max(its.warp_known[self.warp][w], known(w));
    for (u32 lane = 0; lane < kWarp; lane++) {
        its.lane_known[self.index][lane] = std::max(its.lane_known[self.index][lane], known(self.warp));
    }
}

void join(Clocks& into, const Clocks& from) {
    for (u32 w = 0; w < kMaxWarps; w++) into[w] = std::max(into[w], from[w]);
}

// --- clusters: what threads of one block know of another --------------------------------------------------------------

bool in_clusters() { return machine.cluster_blocks > 1; }

// The rank of a block, by its serial number, in the cluster that runs; or more than there are.
u32 rank_in_cluster(u32 serial) { return serial - machine.cluster->first_serial; }

Clocks& known_of(RaceState& its, const Thread& self, u32 rank) {
    return its.ranks_known[self.warp * machine.cluster_blocks + rank];
}

// That the thread's block has begun is known by any arrival.
void meet(RaceState& its, const Thread& self, SyncPoint& point) {
    if (point.cluster != machine.cluster->first_serial) {
        point.cluster = machine.cluster->first_serial;
        point.ranks.assign(machine.cluster_blocks, Clocks{});
        point.ranks_heard.clear();
        point.begun = 0;
    }
    point.begun |= its.begun_floor | its.begun[self.warp] | 1u << self.rank;
}

void release_to_cluster(RaceState& its, const Thread& self, SyncPoint& point, const Clocks& known) {
    meet(its, self, point);
    for (u32 rank = 0; rank < machine.cluster_blocks; rank++) {
        if (rank == self.rank) {
            join(point.ranks[rank], known);
            continue;
        }
        join(point.ranks[rank], its.ranks_floor[rank]);
        join(point.ranks[rank], known_of(its, self, rank));
    }
    join(point.ranks_heard, its.heard);
}

// What a thread lets know its own block alone, it lets know all of it: less is found, and nothing that is not so.
void release_in_block(RaceState& its, const Thread& self) {
    its.begun_floor |= its.begun[self.warp];
    for (u32 rank = 0; rank < machine.cluster_blocks; rank++) join(its.ranks_floor[rank], known_of(its, self, rank));
}

void acquire_in_cluster(RaceState& its, Thread& self, const SyncPoint& point) {
    if (point.cluster != machine.cluster->first_serial) return;
    its.begun[self.warp] |= point.begun;
    for (u32 rank = 0; rank < point.ranks.size(); rank++) {
        if (rank == self.rank) learn(its, self, [&](u32 w) { return point.ranks[rank][w]; });
        else join(known_of(its, self, rank), point.ranks[rank]);
    }
    join(its.heard, point.ranks_heard);
}

Clocks release(RaceState& its, Thread& self, SyncPoint& point, u32 access) {
    const Clocks known = release_clocks(its, self);
    if (in_clusters() && !(access & kBlockScope)) {
        release_to_cluster(its, self, point, known);
        return known;
    }
    if (in_clusters()) release_in_block(its, self);
    const u32 serial = serial_of(self);
    if (point.block != serial) {
        point.block = serial;
        std::fill(point.known, point.known + kMaxWarps, 0u);
    }
    for (u32 w = 0; w < kMaxWarps; w++) point.known[w] = std::max(point.known[w], known[w]);
    return known;
}

void acquire(RaceState& its, Thread& self, const SyncPoint& point, u32 access) {
    if (in_clusters() && !(access & kBlockScope)) acquire_in_cluster(its, self, point);
    if (point.block == serial_of(self)) learn(its, self, [&](u32 w) { return point.known[w]; });
}

bool known_in_cluster(RaceState& its, const Record& record, const Thread& self) {
    const u32 rank = in_clusters() ? rank_in_cluster(record.block) : kMaxRanks, warp = record.thread() / kWarp;
    if (rank >= machine.cluster_blocks) return false;
    return record.clock < its.ranks_floor[rank][warp] || record.clock < known_of(its, self, rank)[warp];
}

bool happened_before(RaceState& its, const Record& record, const Thread& self) {
    if (record.block != serial_of(self)) {
        if (known_in_cluster(its, record, self)) return true;
        u32 block = ordinal(record.block);
        u32 heard = block < its.heard.size() ? its.heard[block] : 0;
        return heard && record.clock < clock_in(heard, record.thread() / kWarp);
    }
    if (record.clock < its.floor_clock || record.thread() == self.index) return true;
    if (record.thread() / kWarp == self.warp) return record.clock < its.lane_known[self.index][record.thread() % kWarp];
    return record.clock < its.warp_known[self.warp][record.thread() / kWarp];
}

// Whether a thread asks for a word again and again: what it waits for may come without anything that orders it.
bool polls_for(const Record& read) {
    const Fiber& fiber = machine.fibers[read.thread()];
    return std::any_of(fiber.polls, fiber.polls + kPolls, [&](const Poll& p) { return p.site == read.site() && p.again; });
}

// `volatile` says that each access is made, and not when: lanes of a warp (and, where they hand over a float, which is
// data and no flag, warps of a block) that meet by it alone lean on running in step.
bool leans_on_step(const Record& record, const Record& now, const Thread& self, Site written) {
    if (!record.is_volatile() || !now.is_volatile() || record.block != now.block) return false;
    if (record.thread() / kWarp != self.warp && value_of(written) == Value::Other) return false;
    return record.site() == written || !polls_for(record);
}

inline bool conflicts(RaceState& its, const Record& record, const Record& now, const Thread& self, bool shared, Site written) {
    if (record.block < machine.first_block_serial) return false;  // of an earlier launch, or none
    // Nearly all there is; below it is asked again.
    if (record.is_by(now) || (record.block == now.block && record.clock < its.floor_clock)) return false;
    if (shared && rank_in_cluster(record.block) >= machine.cluster_blocks) return false;  // of another block that was here
    if (record.strong() && now.strong() && !leans_on_step(record, now, self, written)) return false;
    if (record.block != now.block && heard_entries > kMostHeard) return false;
    return !happened_before(its, record, self);
}

// What is remembered as one.
struct Granule {
    u64 address;
    u32 bytes;
};

enum class Reads { None, Before, Now };

std::string race_text(const char* kind, const Record& record, const Thread& self, bool shared, u64 address, Site site) {
    bool same_block = record.block == serial_of(self);
    std::string other = (same_block ? "" : block_name(record.block) + " ") + thread_name(record.thread());
    return std::string(kind) + " race on " + memory_name(shared, address) + ": " + where(record.site()) + " (" + other +
           ") and " + where(site) + " (" + who(self) + ")";
}

// `reads`: which of the two, where one is a load of global memory; what it loads may be of no use to anybody.
void report(const char* kind, const Record& record, const Record& now, const Thread& self, bool shared, Granule granule, Reads reads) {
    const u64 address = granule.address;
    const Record &reader = reads == Reads::Now ? now : record, &writer = reads == Reads::Now ? record : now;
    if (shared || reads == Reads::None) unused_no_more();
    else if (unused_race(address, granule.bytes, reader.block, reader.thread(), writer.block, writer.thread())) return;
    std::string key = std::string(kind) + where(record.site()) + "|" + where(now.site());
    const bool in_step = record.is_volatile() && now.is_volatile();
    note("race", key, race_text(kind, record, self, shared, address, now.site()) +
                          (in_step ? "; volatile orders no threads, not even lanes of one warp: __syncwarp() does" : ""));
}

// A cache that sees no stores may answer ld.global.nc (__ldg, or const and __restrict__), whoever made them and whatever
// stands between: it is for memory that is read-only for the kernel's whole duration (PTX ISA 9.7.9, ld.global.nc).
void report_stale(const Record& write, const Thread& self, u64 address, Site site) {
    unused_no_more();
    note("non-coherent", where(write.site()) + "|" + where(site),
         "ld.global.nc (__ldg, const __restrict__) loads what this launch has stored: " + memory_name(false, address) + ": " +
             where(write.site()) + " (stores) and " + where(site) + " (" + who(self) + ")");
}

// --- rounding -------------------------------------------------------------------------------------------------------

// Two sums of a warp's 32 products, each product and each sum rounded once, lie less than so many units in the last
// place of the largest term or partial sum apart: half a unit for each of 32 products and 31 sums (of up to twice that
// size), in both.
constexpr f64 kSumUnits = 96;

template <class T>
f64 number(const u8* bytes) {
    T value;
    memcpy(&value, bytes, sizeof value);
    return static_cast<f64>(value);
}

f64 half_number(Value kind, const u8* bytes) {
    u16 bits;
    memcpy(&bits, bytes, sizeof bits);
    return kind == Value::F16 ? F16::decode(bits) : Bf16::decode(bits);
}

u32 step_of(Value kind) { return kind == Value::F64 ? 8 : kind == Value::F16 || kind == Value::Bf16 ? 2 : 4; }
f64 as_number(Value kind, const u8* bytes) {
    const u32 step = step_of(kind);
    return step == 8 ? number<f64>(bytes) : step == 4 ? number<f32>(bytes) : half_number(kind, bytes);
}

// Whether two values of a kind differ by no more than rounding; `largest` is the largest float that lanes exchanged.
bool near(Value kind, f64 a, f64 b, f64 largest) {
    if (!std::isfinite(a) || !std::isfinite(b)) {  // of what has overflowed, the order makes infinity or NaN
        return !std::isfinite(a) && !std::isfinite(b) && (a == b || std::isnan(a) || std::isnan(b));
    }
    f64 size = std::max(std::fabs(a), std::fabs(b)), sums = kSumUnits * std::max(largest, size);
    f64 allowed = kind == Value::F64 ? kSumUnits * size * 0x1p-52 : sums * 0x1p-23;
    if (kind == Value::Tf32 || kind == Value::F16) allowed += size * 0x1p-10 + 0x1p-24;
    if (kind == Value::Bf16) allowed += size * 0x1p-7;
    return std::fabs(a - b) <= allowed;
}

bool near(Value kind, const u8* a, const u8* b, u32 bytes, f64 largest) {
    const u32 step = step_of(kind);
    if (kind == Value::Other || bytes % step) return false;
    for (u32 i = 0; i < bytes; i += step) {
        f64 x = as_number(kind, a + i), y = as_number(kind, b + i);
        if (memcmp(a + i, b + i, step) && !near(kind, x, y, largest)) return false;
    }
    return true;
}

// One store, as far as telling rounding from a race needs it.
struct Storing {
    Thread& self;
    bool shared;
    u64 address;
    u32 bytes;
    Site site;
    u32 execution;
    Stored stored;
};

std::string value_text(Value kind, const u8* bytes) {
    if (kind == Value::F64) return text("%.17g", number<f64>(bytes));
    if (kind == Value::F16 || kind == Value::Bf16) return text("%.5g", half_number(kind, bytes));
    return text("%.9g", number<f32>(bytes));
}

void suspect(const Record& last, const Storing& now, std::string as_rounding) {
    const u32 warps[2] = {last.thread() / kWarp, now.self.warp}, number = store_of_site[now.site];
    for (const Suspects& s : here->suspects) {
        if (s.number == number && s.execution == now.execution && s.address == now.address && s.warps[0] == warps[0] && s.warps[1] == warps[1]) return;
    }
    std::string as_race = race_text("write-write", last, now.self, now.shared, now.address, now.site);
    here->suspects.push_back({number, now.execution, {warps[0], warps[1]}, now.bytes, now.address, where(now.site), as_race, std::move(as_rounding)});
}

// Whether each lane of both warps stored the same; only what is known to be so counts.
bool agree(const Suspects& s) {
    u32 compared = 0;
    for (u32 lane = 0; lane < kWarp; lane++) {
        const u32 threads[2] = {s.warps[0] * kWarp + lane, s.warps[1] * kWarp + lane};
        const LastStore* stored[2];
        for (u32 i = 0; i < 2; i++) {
            if (threads[i] >= machine.threads) return false;
            stored[i] = &here->last_stores[(s.number - 1) * machine.threads + threads[i]];
            if (stored[i]->block != machine.block_serial || stored[i]->execution != s.execution || stored[i]->address != s.address) return false;
        }
        if (memcmp(stored[0]->value, stored[1]->value, s.bytes)) return false;
        compared++;
    }
    return compared == kWarp;
}

void settle_suspects() {
    for (const Suspects& s : here->suspects) {
        if (agree(s)) remark("nondeterministic", s.place, s.as_rounding);
        else unused_no_more(), note("race", "write-write" + s.place + "|" + s.place, s.as_race);
    }
    here->suspects.clear();
}

// A lane of the same warp, or of one that holds the same, stored to the same word by the same execution of this
// instruction, and only rounding tells what it wrote from what is written now.
bool is_rounding(const Cell& cell, const Storing& now) {
    const Record& last = cell.write;
    if (last.block != serial_of(now.self) || last.block != machine.block_serial || last.site() != now.site) return false;
    const bool one_warp = last.thread() / kWarp == now.self.warp;
    if (!one_warp && (here->last_stores.empty() || now.bytes > sizeof LastStore::value)) return false;
    if (last.strong() || !now.execution || cell.execution != now.execution || !now.stored.before || !now.stored.after) return false;
    FirstStore mine{now.site, now.execution, {}};
    if (now.bytes > sizeof mine.bytes) return false;
    Value kind = value_of(now.site);
    const u8 *before = static_cast<const u8*>(now.stored.before), *after = static_cast<const u8*>(now.stored.after);
    FirstStore& first = here->first_stores[now.shared ? now.address | 1ull << 63 : now.address];
    if (first.site != mine.site || first.execution != mine.execution) {
        memcpy(mine.bytes, before, now.bytes);
        first = mine;
    }
    f64 largest = std::max(here->exchanged[now.self.warp][0], here->exchanged[now.self.warp][1]);
    // With the first as well as with the last: many small steps are no rounding.
    if (!near(kind, before, after, now.bytes, largest) || !near(kind, first.bytes, after, now.bytes, largest)) return false;
    u32 step = step_of(kind), at = 0;
    while (!memcmp(before + at, after + at, step)) at += step;
    std::string message = "lanes of one warp store to one word what differs by rounding (" + value_text(kind, before + at) +
                                " and " + value_text(kind, after + at) + "), and which of it stays is not defined: " +
                                memory_name(now.shared, now.address + at) + ", " + where(now.site) + ", " +
                                thread_name(last.thread()) + " and " + who(now.self);
    if (one_warp) remark("nondeterministic", where(now.site), message);
    else suspect(last, now, std::move(message));
    return true;
}

// NaN stored over NaN, each of them computed: all arithmetic of a card makes the same NaN, and this processor's has a
// sign and a payload. What was loaded, or made by integers, keeps its bits on a card too.
bool is_same_nan(const Cell& cell, const Storing& now) {
    const Value kind = value_of(now.site);
    if (kind == Value::Other || cell.write.block < machine.first_block_serial || value_of(cell.write.site()) != kind) return false;
    if (!now.stored.before || !now.stored.after) return false;
    const u32 step = step_of(kind);
    if (now.bytes % step) return false;
    const u8 *before = static_cast<const u8*>(now.stored.before), *after = static_cast<const u8*>(now.stored.after);
    for (u32 i = 0; i < now.bytes; i += step) {
        if (memcmp(before + i, after + i, step) && !(std::isnan(as_number(kind, before + i)) && std::isnan(as_number(kind, after + i)))) return false;
    }
    return true;
}

inline void look_at(RaceState& its, Cell& cell, const Record& now, Granule granule, u32 access, const Storing& storing) {
    Thread& self = storing.self;
    const bool shared = storing.shared;
    Site site = now.site();
    const Record& last = cell.read;  // a write since then would have cleared it
    if (!(access & ~(kRead | kNonCoherent)) && last.is_by(now) && last.clock == now.clock) return;
    if (access & kWrite && is_same_nan(cell, storing)) return;
    if (access & kNonCoherent && cell.write.block >= machine.first_block_serial) report_stale(cell.write, self, granule.address, site);
    const bool told = access & kAnnounced && cell.write.block == machine.owner;
    if (!told && conflicts(its, cell.write, now, self, shared, cell.write.site()) && !(access & kWrite && is_rounding(cell, storing))) {
        const bool writes = access & kWrite;
        report(writes ? "write-write" : "write-read", cell.write, now, self, shared, granule, writes ? Reads::None : Reads::Now);
    }
    if (access & kWrite) {
        if (conflicts(its, cell.read, now, self, shared, site)) report("read-write", cell.read, now, self, shared, granule, Reads::Before);
        if (conflicts(its, cell.earlier_read, now, self, shared, site)) {
            report("read-write", cell.earlier_read, now, self, shared, granule, Reads::Before);
        }
        cell = Cell{now, {}, {}, storing.execution};
    } else if (cell.read.is_by(now)) {
        cell.read = now;
    } else {
        cell.earlier_read = cell.read;
        cell.read = now;
    }
}

// Of the cluster's blocks, what is heard of outside of it, and what the thread knows of them by the cluster's means.
void learn_of_cluster(RaceState& its, Thread& self) {
    for (u32 rank = 0; in_clusters() && rank < machine.cluster_blocks; rank++) {
        const u32 block = ordinal(machine.cluster->first_serial + rank);
        const u32 heard = block < its.heard.size() ? its.heard[block] : 0;
        if (!heard || rank == self.rank) continue;
        its.begun[self.warp] |= 1u << rank;
        for (u32 w = 0; w < kMaxWarps; w++) known_of(its, self, rank)[w] = std::max(known_of(its, self, rank)[w], clock_in(heard, w));
    }
}

void tell_of_cluster(RaceState& its, const Thread& self, SyncPoint& point) {
    for (u32 rank = 0; in_clusters() && rank < machine.cluster_blocks; rank++) {
        if (rank == self.rank) continue;
        Clocks known = its.ranks_floor[rank];
        join(known, known_of(its, self, rank));
        if (known == Clocks{}) continue;
        others.push_back(known);
        snapshots.push_back({static_cast<u32>(others.size() - 1), 0, known[0]});
        u32& heard = at(point.heard, ordinal(machine.cluster->first_serial + rank));
        heard = joined(heard, static_cast<u32>(snapshots.size() - 1));
    }
}

void synchronise(Thread& self, bool shared, u64 address, u32 access) {
    synchronises |= (access & (kAcquire | kRelease)) != 0;
    if (!synchronises) return;
    RaceState& its = here.of(self);
    const bool across = !shared && !(access & (kBlockScope | kClusterScope));
    SyncPoint& point = shared ? memory->points[address] : points[address];
    const u32 block = ordinal(serial_of(self));
    if (access & kRead) {
        acquire(its, self, point, access);
        if (across && heard_entries <= kMostHeard) {
            join(its.heard, point.heard);
            if (u32 own = at(its.heard, block)) learn(its, self, [&](u32 w) { return clock_in(own, w); });
            learn_of_cluster(its, self);
        }
    }
    // Only what a fence (or a release) stands before is let known: an atomic alone orders nothing else.
    u32 fenced = access & kRelease ? kForAll : its.fenced[self.index];
    if (!(access & kWrite) || !fenced) return;
    const Clocks known = release(its, self, point, fenced == kForBlock ? access | kBlockScope : access);
    if (!across || fenced < kForAll || heard_entries > kMostHeard) return;
    join(point.heard, its.heard);
    tell_of_cluster(its, self, point);
    u32& heard = at(point.heard, block);
    heard = joined(heard, snapshot(its, self, known));
}

}  // namespace

void RaceState::begin() {
    if (!machine.races) return;
    floor_clock = 0;
    memset(warp_known, 0, sizeof warp_known);
    memset(lane_known, 0, machine.threads * sizeof lane_known[0]);
    memset(fenced, 0, machine.threads * sizeof fenced[0]);
    memset(exchanged, 0, sizeof exchanged);
    std::fill(clocks, clocks + machine.threads, 1u);
    heard.clear();
    first_stores.clear();
    suspects.clear();
    memset(last_others, 0, sizeof last_others);
    const size_t stores = static_cast<size_t>(float_stores) * machine.threads;
    executions.assign(stores, 0);
    last_stores.resize(stores <= kMostStores ? stores : 0);
    const u32 ranks = machine.cluster_blocks > 1 ? machine.cluster_blocks : 0;
    ranks_floor.assign(ranks, Clocks{});
    ranks_known.assign(ranks * kMaxWarps, Clocks{});
    begun_floor = 0;
    memset(begun, 0, sizeof begun);
}

void SharedState::begin() {
    if (!machine.races) return;
    points.clear();
    if (generation != sim::generation) pages.clear();
    generation = sim::generation;
}

void races_new_launch() {
    if (machine.last_serial > kLastSerial || global_pages.size() * kPageBytes * sizeof(Cell) / 4 > kShadowLimit) {
        global_pages.clear();
        for (CachedPage& cached : page_cache) cached = CachedPage();
        generation++;
        machine.last_serial = 0;
        machine.first_block_serial = 1;
    }
    points.clear();
    others.assign(1, Clocks{});
    snapshots.assign(1, Snapshot{});
    heard_entries = 0;
    synchronises = false;
    store_of_site.assign(machine.module->place_count, 0);
    float_stores = 0;
    for (Site site = 0; site < machine.module->place_count; site++) {
        if (value_of(site) != Value::Other && !strncmp(machine.module->places[site].instruction, "st.", 3)) {
            store_of_site[site] = ++float_stores;
        }
    }
}

namespace {

Record record_of(const Thread& self, u32 clock, u32 access, Site site) {
    const u32 strong = access & kStrong ? kMaxThreads : 0, is_volatile = access & kVolatile ? kMaxThreads * 2 : 0;
    return {serial_of(self), clock, self.index | strong | is_volatile | site * (kMaxThreads * 4)};
}

// Most of all accesses: plain loads of whole granules that nobody has stored to since the last barrier. False, and
// nothing done, where it is another one. What it does `look_at` would do too.
bool read_in_order(RaceState& its, Page& page, u64 address, u32 bytes, const Record& now, bool coherent) {
    const u32 first = static_cast<u32>(address % kPageBytes);
    if (page.shift != 2 || ((first | bytes) & 3) || first + bytes > kPageBytes) return false;
    Cell *const begin = &page.cells[first >> 2], *const end = begin + (bytes >> 2);
    const u32 floor = its.floor_clock, first_block = machine.first_block_serial;
    for (const Cell* cell = begin; cell != end; cell++) {
        const Record& write = cell->write;
        if (write.block < first_block) continue;
        if (!coherent || (!write.is_by(now) && (write.block != now.block || write.clock >= floor))) return false;
    }
    for (Cell* cell = begin; cell != end; cell++) {
        if (!cell->read.is_by(now)) cell->earlier_read = cell->read;
        else if (cell->read.clock == now.clock) continue;
        cell->read = now;
    }
    return true;
}

}  // namespace

void race_access(Thread& self, bool shared, u64 address, u32 bytes, u32 access, Site site, Stored stored) {
    RaceState& its = here.of(self);
    const u32 clock = its.clocks[self.index];  // a release lets its own access be known too
    const bool coherent = !(access & kNonCoherent);
    if ((access & ~kNonCoherent) == kRead &&
        read_in_order(its, page_of(shared, address), address, bytes, record_of(self, clock, access, site), coherent)) {
        return;
    }
    if (access & kStrong) synchronise(self, shared, address, access);
    u32 number = access & kWrite ? store_of_site[site] : 0;
    u32 execution = number ? ++its.executions[(number - 1) * machine.threads + self.index] : 0;
    if (number && !its.last_stores.empty() && stored.after && bytes <= sizeof LastStore::value) {
        LastStore& mine = its.last_stores[(number - 1) * machine.threads + self.index];
        mine.block = serial_of(self), mine.execution = execution, mine.address = address;
        memcpy(mine.value, stored.after, bytes);
    }
    if (access & kSilent) return;
    Page& page = page_of(shared, address);
    u32 wanted = bytes & 1 || address & 1 ? 0 : bytes & 2 || address & 2 ? 1 : 2;
    if (wanted < page.shift) page.split(wanted);
    const Record now = record_of(self, clock, access, site);
    const Storing storing{self, shared, address, bytes, site, execution, stored};
    u32 first = static_cast<u32>(address % kPageBytes), last = std::min(first + bytes, kPageBytes) - 1;
    for (u32 i = first >> page.shift; i <= last >> page.shift; i++) {
        look_at(its, page.cells[i], now, {address / kPageBytes * kPageBytes + (static_cast<u64>(i) << page.shift), 1u << page.shift}, access, storing);
    }
    u32 done = last + 1 - first;  // a copy may reach over the page's end
    if (done < bytes) race_access(self, shared, address + done, bytes - done, access & ~kStrong, site);
}

void race_forget(u64 address, u64 bytes) {
    for (u64 at = address; at < address + bytes; at += 4) {
        Page& page = page_of(false, at);
        for (u64 byte = at; byte < at + 4; byte++) page.cells[byte % kPageBytes >> page.shift] = Cell();
    }
}

void races_end_of_block() { settle_suspects(); }

void race_whole_barrier() {
    settle_suspects();
    u32 latest = here->floor_clock;
    for (u32 i = 0; i < machine.threads; i++) latest = std::max(latest, here->clocks[i]);
    here->floor_clock = latest + 1;
    std::fill(here->clocks, here->clocks + machine.threads, here->floor_clock);
    // Sums that do not fit a scratch at once are stored in batches, with barriers and no exchange between them.
    for (auto& largest : here->exchanged) {
        if (largest[0] > 0) largest[1] = largest[0], largest[0] = 0;
    }
    if (!in_clusters()) return;
    for (u32 w = 0; w < kMaxWarps && w * kWarp < machine.threads; w++) {
        here->begun_floor |= here->begun[w];
        for (u32 rank = 0; rank < machine.cluster_blocks; rank++) {
            join(here->ranks_floor[rank], here->ranks_known[w * machine.cluster_blocks + rank]);
        }
    }
}

void race_exchange(const Lanes& lanes, f32 largest) {
    f32& seen = here->exchanged[lanes.warp.fibers[0].thread.warp][0];
    seen = std::max(seen, largest);
}

void race_warp_sync(const Lanes& lanes) {
    u32 first = static_cast<u32>(lanes.warp.fibers[0].thread.index);
    u32 joined[kWarp] = {};
    each_lane(lanes.mask, [&](u32 lane) {
        for (u32 k = 0; k < kWarp; k++) joined[k] = std::max(joined[k], here->lane_known[first + lane][k]);
    });
    each_lane(lanes.mask, [&](u32 lane) { joined[lane] = std::max(joined[lane], ++here->clocks[first + lane]); });
    each_lane(lanes.mask, [&](u32 lane) { std::copy(joined, joined + kWarp, here->lane_known[first + lane]); });
}

void race_fence(Thread& self, u32 scope) {
    u32& fenced = here->fenced[self.index];
    fenced = std::max<u32>(fenced, scope == kBlockScope ? kForBlock : scope == kClusterScope ? kForCluster : kForAll);
    synchronises = true;
}

void race_release(Thread& self, SyncPoint& point, u32 access) { release(here.of(self), self, point, access); }

void race_acquire(Thread& self, const SyncPoint& point, u32 access) { acquire(here.of(self), self, point, access); }

void race_meet(Thread& self, SyncPoint& point) {
    RaceState& its = here.of(self);
    if (its.fenced[self.index] >= kForCluster) return race_release(self, point, kClusterScope);
    if (in_clusters()) meet(its, self, point);
}

bool race_has_begun(const Thread& self, u32 rank) {
    const RaceState& its = here.of(self);
    return (its.begun_floor | its.begun[self.warp]) >> rank & 1;
}

// Accesses by other blocks to this one's shared memory must have happened before the last of its threads returned.
void race_block_ends() {
    if (!machine.visited) return;
    std::vector<Clocks> known = here->ranks_floor;
    for (u32 i = 0; i < here->ranks_known.size(); i++) join(known[i % machine.cluster_blocks], here->ranks_known[i]);
    auto look = [&](const Record& record, u64 address) {
        const u32 rank = rank_in_cluster(record.block);
        if (rank >= machine.cluster_blocks || rank == machine.rank || record.clock < known[rank][record.thread() / kWarp]) return;
        note("cluster", "end" + where(record.site()), block_name(machine.block_serial) +
             " may have ended when its shared memory is reached: byte " + std::to_string(address) + ", " + where(record.site()) + ", " +
             block_name(record.block) + " " + thread_name(record.thread()) + "; nothing orders the two, a barrier of the cluster would");
    };
    for (size_t p = 0; p < memory->pages.size(); p++) {
        const Page& page = memory->pages[p];
        for (size_t i = 0; i < page.cells.size(); i++) {
            const u64 address = p * kPageBytes + (i << page.shift);
            for (const Record* record : {&page.cells[i].write, &page.cells[i].read, &page.cells[i].earlier_read}) look(*record, address);
        }
    }
}

}  // namespace sim
