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
// address order them, as in "the last block to finish adds up".
//
// Memory. Each granule of memory remembers its last write and two reads. Granules are 4 bytes; a page that sees a smaller
// access is split, so neighbours in one word are never mixed up. A write that changes nothing is not looked at: all
// threads may store the same value, which is common and harmless.
#include "machine.hpp"

#include <algorithm>
#include <unordered_map>

namespace sim {

namespace {

constexpr u32 kPageBytes = 4096;
constexpr u32 kPageCache = 1024;
constexpr u64 kShadowLimit = 256ull << 20;  // bytes of records kept from launch to launch
constexpr u32 kLastSerial = 0xf0000000u;    // serial numbers of blocks begin anew before they overflow

struct Record {
    u32 block = 0;  // serial number; 0: none
    u32 clock = 0;
    u32 thread : 10 = 0;
    u32 strong : 1 = 0;
    u32 site : 21 = 0;
};

struct Cell {
    Record write, read, earlier_read;
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

std::unordered_map<u64, Page> global_pages;
CachedPage page_cache[kPageCache];
std::vector<Page> shared_pages;

u32 floor_clock = 0;
u32 clocks[kMaxThreads];
u32 lane_known[kMaxThreads][kWarp];
u32 warp_known[kMaxWarps][kMaxWarps];
bool fenced[kMaxThreads];         // the thread has made a fence
std::vector<u64> known_blocks;    // bits: blocks of the launch that this block has acquired
bool synchronises = false;        // some thread of this launch has used a fence, release or acquire
std::unordered_map<u64, SyncPoint> points;  // by address

Page& page_of(bool shared, u64 address) {
    u64 number = address / kPageBytes;
    if (shared) {
        if (number >= shared_pages.size()) shared_pages.resize(number + 1);
        return shared_pages[number];
    }
    CachedPage& cached = page_cache[number % kPageCache];
    if (cached.number != number) cached = {number, &global_pages[number]};
    return *cached.page;
}

bool has_bit(const std::vector<u64>& bits, u32 i) { return i / 64 < bits.size() && bits[i / 64] >> i % 64 & 1; }

void set_bit(std::vector<u64>& bits, u32 i) {
    if (i / 64 >= bits.size()) bits.resize(i / 64 + 1);
    bits[i / 64] |= 1ull << i % 64;
}

void join_bits(std::vector<u64>& into, const std::vector<u64>& from) {
    if (into.size() < from.size()) into.resize(from.size());
    for (size_t i = 0; i < from.size(); i++) into[i] |= from[i];
}

bool happened_before(const Record& record, const Thread& self) {
    if (record.block != machine.block_serial) return has_bit(known_blocks, record.block - machine.first_block_serial);
    if (record.clock < floor_clock || record.thread == self.index) return true;
    if (record.thread / kWarp == self.warp) return record.clock < lane_known[self.index][record.thread % kWarp];
    return record.clock < warp_known[self.warp][record.thread / kWarp];
}

bool conflicts(const Record& record, const Thread& self, bool shared, bool strong) {
    if (record.block < machine.first_block_serial) return false;  // of an earlier launch, or none
    if (shared && record.block != machine.block_serial) return false;
    if (record.strong && strong) return false;
    return !happened_before(record, self);
}

std::string name_of(bool shared, u64 address) {
    if (shared) return text("shared memory byte %llu", static_cast<unsigned long long>(address));
    for (const Range& range : machine.ranges) {
        if (address - range.begin < range.bytes) {
            return text("`%s` byte %llu", range.name.c_str(), static_cast<unsigned long long>(address - range.begin));
        }
    }
    return "memory";
}

void report(const char* kind, const Record& record, const Thread& self, bool shared, u64 address, Site site) {
    bool same_block = record.block == machine.block_serial;
    std::string other = same_block ? thread_name(record.thread) : "another block";
    std::string key = std::string(kind) + where(record.site) + "|" + where(site);
    note("race", key, std::string(kind) + " race on " + name_of(shared, address) + ": " + where(record.site) + " (" + other +
                          ") and " + where(site) + " (" + who(self) + ")");
}

void look_at(Cell& cell, const Record& now, Thread& self, bool shared, u64 address, u32 access) {
    Site site = now.site;
    const Record& last = cell.read;  // a write since then would have cleared it
    if (access == kRead && last.thread == now.thread && last.clock == now.clock && last.block == now.block) return;
    if (conflicts(cell.write, self, shared, now.strong)) {
        report(access & kWrite ? "write-write" : "write-read", cell.write, self, shared, address, site);
    }
    if (access & kWrite) {
        if (conflicts(cell.read, self, shared, now.strong)) report("read-write", cell.read, self, shared, address, site);
        if (conflicts(cell.earlier_read, self, shared, now.strong)) {
            report("read-write", cell.earlier_read, self, shared, address, site);
        }
        cell = Cell{now, {}, {}};
    } else if (cell.read.block == now.block && cell.read.thread == now.thread) {
        cell.read = now;
    } else {
        cell.earlier_read = cell.read;
        cell.read = now;
    }
}

void synchronise(Thread& self, bool shared, u64 address, u32 access) {
    synchronises |= (access & (kAcquire | kRelease)) != 0;
    if (!synchronises) return;
    SyncPoint& point = points[shared ? address | 1ull << 63 : address];
    if (access & kRead) {
        race_acquire(self, point);
        join_bits(known_blocks, point.blocks);
    }
    // Only what a fence (or a release) stands before is let known: an atomic alone orders nothing else.
    if (access & kWrite && (access & kRelease || fenced[self.index])) {
        race_release(self, point);
        join_bits(point.blocks, known_blocks);
        set_bit(point.blocks, machine.block_serial - machine.first_block_serial);
    }
}

}  // namespace

void races_new_launch() {
    if (machine.block_serial > kLastSerial || global_pages.size() * kPageBytes * sizeof(Cell) / 4 > kShadowLimit) {
        global_pages.clear();
        shared_pages.clear();
        for (CachedPage& cached : page_cache) cached = CachedPage();
        machine.block_serial = 0;
        machine.first_block_serial = 1;
    }
    points.clear();
    synchronises = false;
}

void races_new_block() {
    floor_clock = 0;
    memset(warp_known, 0, sizeof warp_known);
    memset(lane_known, 0, machine.threads * sizeof lane_known[0]);
    memset(fenced, 0, machine.threads * sizeof fenced[0]);
    std::fill(clocks, clocks + machine.threads, 1u);
    known_blocks.clear();
}

void race_access(Thread& self, bool shared, u64 address, u32 bytes, u32 access, Site site) {
    if (access & kStrong) synchronise(self, shared, address, access);
    if (access & kSilent) return;
    Page& page = page_of(shared, address);
    u32 wanted = bytes & 1 || address & 1 ? 0 : bytes & 2 || address & 2 ? 1 : 2;
    if (wanted < page.shift) page.split(wanted);
    Record now;
    now.block = machine.block_serial;
    now.clock = clocks[self.index];
    now.thread = self.index;
    now.strong = (access & kStrong) != 0;
    now.site = site;
    u32 first = static_cast<u32>(address % kPageBytes), last = std::min(first + bytes, kPageBytes) - 1;
    for (u32 i = first >> page.shift; i <= last >> page.shift; i++) {
        look_at(page.cells[i], now, self, shared, address / kPageBytes * kPageBytes + (static_cast<u64>(i) << page.shift), access);
    }
    u32 here = last + 1 - first;  // a copy may reach over the page's end
    if (here < bytes) race_access(self, shared, address + here, bytes - here, access & ~kStrong, site);
}

void race_whole_barrier() {
    u32 latest = floor_clock;
    for (u32 i = 0; i < machine.threads; i++) latest = std::max(latest, clocks[i]);
    floor_clock = latest + 1;
    std::fill(clocks, clocks + machine.threads, floor_clock);
}

void race_warp_sync(const Lanes& lanes) {
    u32 first = static_cast<u32>(lanes.warp.fibers[0].thread.index);
    u32 joined[kWarp] = {};
    each_lane(lanes.mask, [&](u32 lane) {
        for (u32 k = 0; k < kWarp; k++) joined[k] = std::max(joined[k], lane_known[first + lane][k]);
    });
    each_lane(lanes.mask, [&](u32 lane) { joined[lane] = std::max(joined[lane], ++clocks[first + lane]); });
    each_lane(lanes.mask, [&](u32 lane) { std::copy(joined, joined + kWarp, lane_known[first + lane]); });
}

void race_fence(Thread& self) {
    fenced[self.index] = true;
    synchronises = true;
}

void race_release(Thread& self, SyncPoint& point) {
    if (point.block != machine.block_serial) {
        point.block = machine.block_serial;
        std::fill(point.known, point.known + kMaxWarps, 0u);
    }
    for (u32 w = 0; w < kMaxWarps; w++) point.known[w] = std::max({point.known[w], warp_known[self.warp][w], floor_clock});
    point.known[self.warp] = std::max(point.known[self.warp], ++clocks[self.index]);
}

void race_acquire(Thread& self, const SyncPoint& point) {
    if (point.block != machine.block_serial) return;
    for (u32 w = 0; w < kMaxWarps; w++) warp_known[self.warp][w] = std::max(warp_known[self.warp][w], point.known[w]);
    for (u32 lane = 0; lane < kWarp; lane++) {
        lane_known[self.index][lane] = std::max(lane_known[self.index][lane], point.known[self.warp]);
    }
}

}  // namespace sim
