// Races on values that nobody uses.
//
// Where a tile is smaller than the block, Triton has whole warps hold the same elements as others: all of them load, one
// stores. In place, the others' loads race with its store, and what they load goes nowhere. Such a launch is run again,
// from the memory that it began with, and each load that raced is answered with rubbish. Where every byte is left as
// before, and nothing else is found, whichever of the two values is read on a card does not matter: that is a note.
#include "machine.hpp"

#include <set>
#include <tuple>
#include <unordered_map>

namespace sim {

bool poisoning = false;

namespace {

constexpr u64 kMostSaved = 64u << 20;  // bytes; a launch that may write to more is not run again
constexpr u32 kRubbish = 3;            // kinds of it
constexpr u32 kMostRead = 64;          // bytes of one load

using Who = std::tuple<u64, u32>;  // block of the grid, thread

struct Saved {
    u64 begin;
    std::vector<u8> bytes;
};

std::vector<Saved> before;
bool all_saved = false, others = false;
u32 rubbish = 0;
std::unordered_map<u64, std::set<Who>> writers;  // by byte that raced
std::set<std::pair<u64, Who>> answered;          // with rubbish, by byte

Who who_of(u32 serial, u32 thread) {
    const Dim3 block = machine.blocks[serial - machine.first_block_serial];
    return {block.x + static_cast<u64>(machine.grid.x) * (block.y + static_cast<u64>(machine.grid.y) * block.z), thread};
}

std::vector<Saved> saved() {
    std::vector<Saved> copies;
    for (const Range& range : machine.ranges) {
        const u8* bytes = reinterpret_cast<const u8*>(range.begin);
        if (range.writable) copies.push_back({range.begin, {bytes, bytes + range.bytes}});
    }
    return copies;
}

bool is_as(const std::vector<Saved>& copies) {
    for (const Saved& copy : copies) {
        if (memcmp(reinterpret_cast<const void*>(copy.begin), copy.bytes.data(), copy.bytes.size())) return false;
    }
    return true;
}

void restore(const std::vector<Saved>& copies) {
    for (const Saved& copy : copies) memcpy(reinterpret_cast<void*>(copy.begin), copy.bytes.data(), copy.bytes.size());
}

// Another number in any format: its bits turned over, NaN, the largest.
u8 rubbish_for(u64 address, u8 byte) { return rubbish == 0 ? static_cast<u8>(~byte) : rubbish == 1 && !(address & 1) ? 0xff : 0x7f; }

}  // namespace

void unused_new_launch() {
    u64 bytes = 0;
    for (const Range& range : machine.ranges) bytes += range.writable ? range.bytes : 0;
    all_saved = machine.races && bytes <= kMostSaved;
    before = all_saved ? saved() : std::vector<Saved>();
    writers.clear();
    others = poisoning = false;
}

bool unused_race(u64 address, u32 bytes, u32 reading_block, u32 reader, u32 writing_block, u32 writer) {
    if (poisoning) return answered.count({address, who_of(reading_block, reader)});
    for (u32 i = 0; i < bytes; i++) writers[address + i].insert(who_of(writing_block, writer));
    return false;
}

void unused_no_more() { others = true; }

void* unused_read(const Thread& self, u64 address, u32 bytes) {
    static u8 copy[kMostRead];  // it is looked at before the next load
    const Who reader = who_of(machine.block_serial, self.index);
    bool any = false;
    for (u32 i = 0; bytes <= kMostRead && i < bytes; i++) {
        auto found = writers.find(address + i);
        if (found == writers.end() || found->second.count(reader)) continue;
        if (!any) memcpy(copy, reinterpret_cast<const void*>(address), bytes);
        any = true;
        copy[i] = rubbish_for(address + i, copy[i]);
        answered.insert({address + i, reader});
    }
    return any ? copy : nullptr;
}

bool unused_by_all(bool (*run_again)()) {
    if (others || !all_saved || writers.empty()) return false;
    const std::vector<Saved> after = saved();
    bool unused = true;
    poisoning = true;
    for (rubbish = 0; unused && rubbish < kRubbish; rubbish++) {
        restore(before);
        answered.clear();
        unused = run_again() && is_as(after);
    }
    poisoning = false;
    restore(after);
    return unused;
}

}  // namespace sim
