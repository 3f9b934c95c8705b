// Checks of every load and store: bounds, alignment, read-only inputs, unwritten shared memory; and bytes that a copy is writing.
#include "machine.hpp"

#include <stdlib.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <unordered_map>

namespace sim {

namespace {

// Addresses that shared memory can have: what lies behind is found out of bounds, not somebody else's memory.
constexpr u64 kArenaBytes = 256 * 1024;
constexpr u64 kNullPage = 4096;

struct PendingCopy {
    u32 shared, bytes;
    Site site;
};
struct CopyState {
    std::unordered_map<u32, PendingCopy> pending;      // by first byte; they do not overlap
    u64 bits[kArenaBytes / 64 + 1] = {};               // one for each byte of shared memory that a copy is writing

    void begin() {
        if (!pending.empty()) memset(bits, 0, sizeof bits);
        pending.clear();
    }
};
OfMemory<CopyState> copies;

const char* verb(u32 access) { return access & kRead ? (access & kWrite ? "atomic access" : "read") : "write"; }

std::string at(const Thread& self, Site site) { return ", " + where(site) + ", " + who(self); }

[[noreturn]] void misaligned(const Thread& self, u64 address, u32 bytes, u32 access, Site site, const char* what) {
    fail("misaligned", text("misaligned %s of %u bytes at %s address 0x%llx (%llu bytes past a multiple of %u)", verb(access),
                            bytes, what, static_cast<unsigned long long>(address),
                            static_cast<unsigned long long>(address % bytes), bytes) + at(self, site));
}

// How far an access lies from a range, in words; 0 distance where it begins inside and reaches over the end.
std::string relation(const Range& range, u64 address, u32 bytes) {
    u64 end = range.begin + range.bytes;
    auto number = [](u64 n) { return static_cast<unsigned long long>(n); };
    if (address < range.begin) return text("%llu bytes before the beginning of `%s`", number(range.begin - address), range.name.c_str());
    if (range.pitch && address < end) {
        u64 offset = (address - range.begin) % range.pitch;
        if (offset >= range.row) return text("between the rows of `%s`, %llu bytes behind the end of one", range.name.c_str(), number(offset - range.row));
        if (offset + bytes > range.row) return text("reaching %llu bytes over the end of a row of `%s`", number(offset + bytes - range.row), range.name.c_str());
    }
    if (address >= end) return text("%llu bytes behind the end of `%s`", number(address - end), range.name.c_str());
    return text("reaching %llu bytes over the end of `%s`", number(address + bytes - end), range.name.c_str());
}

// What kernels have of malloc. It outlives a launch, as on a card.
constexpr u64 kHeapBytes = 8ull << 20;  // cudaLimitMallocHeapSize, where nobody has set it
struct Heap {
    std::map<u64, Range> pieces;
    u64 bytes = 0;
};
Heap heap;

const Range* find_in_heap(u64 address, u32 bytes) {
    auto after = heap.pieces.upper_bound(address);
    if (after == heap.pieces.begin()) return nullptr;
    const Range& range = std::prev(after)->second;
    return range.holds(address, bytes) ? &range : nullptr;
}

// The parameters that the address of an instruction comes from, of those that point to memory; 0: it may be any.
u64 bases_of(Site site) { return machine.module->places[site].bases & machine.pointers; }

// The range that holds the access, and may be written where it must be.
const Range* find_range(u64 address, u32 bytes, bool write, bool global_only, u64 bases) {
    const Range* readable = nullptr;
    for (const Range& range : machine.ranges) {
        if (global_only && !range.global) continue;
        if (bases && range.global && !(range.parameters & bases)) continue;
        if (!range.holds(address, bytes)) continue;
        if (!write || range.writable) return &range;
        readable = &range;
    }
    return readable;
}

[[noreturn]] void out_of_bounds(const Thread& self, u64 address, u32 bytes, u32 access, Site site) {
    std::string head = text("out-of-bounds %s of %u bytes, ", verb(access), bytes);
    if (address < kNullPage) {
        fail("out-of-bounds", head + text("through a null pointer (address %llu)", static_cast<unsigned long long>(address)) + at(self, site));
    }
    const Range* nearest = nullptr;
    u64 best = ~0ull;
    u64 bases = bases_of(site);
    auto look_at = [&](const Range& range) {
        u64 end = range.begin + range.bytes;
        u64 distance = address < range.begin ? range.begin - address : address >= end ? address - end : 0;
        if (distance < best) best = distance, nearest = &range;
    };
    for (const Range& range : machine.ranges) {
        if (!bases || range.parameters & bases) look_at(range);
    }
    if (!bases) {
        for (const auto& piece : heap.pieces) look_at(piece.second);
    }
    std::string place = nearest ? relation(*nearest, address, bytes) : "and the kernel was given no memory";
    const Range* hit = bases ? find_range(address, bytes, false, false, 0) : nullptr;
    if (hit && hit != nearest) place += ", in `" + hit->name + "`";
    fail("out-of-bounds", head + place + at(self, site));
}

void* reach_range(Thread& self, u64 address, u32 bytes, u32 alignment, u32 access, Site site, const void* stored, bool global_only) {
    if (address & (alignment - 1)) misaligned(self, address, alignment, access, site, "global");
    const Range* range = machine.range_of_site[site];
    if (__builtin_expect(!range->holds(address, bytes), 0)) {
        range = find_range(address, bytes, access & kWrite, global_only, bases_of(site));
        if (!range && !bases_of(site)) range = find_in_heap(address, bytes);
        if (!range) out_of_bounds(self, address, bytes, access, site);
        if (access & kWrite && !range->writable) {
            fail("read-only", "writes to the read-only input `" + range->name + "`" + at(self, site));
        }
        machine.range_of_site[site] = range;
    }
    void* memory = reinterpret_cast<void*>(address);
    if (machine.races && range->tracked) {
        if (stored && same_bytes(memory, stored, bytes)) access |= kSilent;
        else if (access & kWrite && !(access & kRead)) stirred();
        race_access(self, false, address, bytes, access, site, {memory, stored});
    }
    if (machine.counting && range->global) count_access(self, false, address, bytes, access, site);
    return memory;
}

// One load, store or atomic.
void* reach_element(Thread& self, u64 address, u32 bytes, u32 access, Site site, const void* stored, bool global_only) {
    void* instead = __builtin_expect(poisoning, 0) && (access & ~kNonCoherent) == kRead ? unused_read(self, address, bytes) : nullptr;
    void* memory = reach_range(self, address, bytes, bytes, access, site, stored, global_only);
    return instead ? instead : memory;
}

u64 bits_of(u32 shared, u32 bytes) { return (bytes == 64 ? ~0ull : (1ull << bytes) - 1) << (shared & 63); }

// Calls `change(word, bits)` for the words of the bit map that these bytes fall into.
template <class Change>
void each_word(u32 shared, u32 bytes, Change change) {
    for (u32 done = 0; done < bytes;) {
        u32 part = std::min(bytes - done, 64 - (shared + done) % 64);
        change((shared + done) / 64, bits_of(shared + done, part));
        done += part;
    }
}

// The copy that is writing some of these bytes. The bits answer the usual case, the search is for the report.
const PendingCopy* find_pending(u32 shared, u32 bytes) {
    u64 touched = 0;
    if (machine.pending_copies) each_word(shared, bytes, [&](u32 word, u64 bits) { touched |= copies->bits[word] & bits; });
    if (!touched) return nullptr;
    for (const auto& entry : copies->pending) {
        const PendingCopy& copy = entry.second;
        if (shared < copy.shared + copy.bytes && copy.shared < shared + bytes) return &copy;
    }
    return nullptr;
}

// What a message about another block's memory says besides.
std::string whose(const Thread&) {
    std::string block = whose_memory();
    return block.empty() ? "" : " (it is memory" + block + ")";
}

[[noreturn]] void unfinished(const Thread& self, const PendingCopy& copy, u32 shared, const char* does, Site site) {
    fail("unfinished copy", text("%s shared memory byte %u, which an asynchronous copy is still writing (no wait for the copy of ",
                                 does, shared) + where(copy.site) + ")" + whose(self) + at(self, site));
}

[[noreturn]] void not_readable(const Thread& self, u32 shared, u32 bytes, Site site) {
    if (const PendingCopy* copy = find_pending(shared, bytes)) unfinished(self, *copy, shared, "reads", site);
    u32 byte = shared;
    while (machine.readable[byte / 64] >> byte % 64 & 1) byte++;
    fail("uninitialised", text("reads shared memory byte %u, which nothing in this block has written", byte) + whose(self) + at(self, site));
}

bool names_rank(u64 address) {
    const u32 low = static_cast<u32>(address), above = low >> kRankShift;
    return above && above <= kMaxRanks && offset_of(low) < machine.shared_bytes;
}

[[noreturn]] void outside_shared(const Thread& self, u64 address, u32 bytes, u32 access, Site site) {
    s64 offset = static_cast<s64>(static_cast<s32>(address));
    fail("out-of-bounds", text("out-of-bounds %s of %u bytes at offset %lld of the block's %u bytes of shared memory", verb(access),
                               bytes, static_cast<long long>(offset), machine.shared_bytes) + whose(self) +
                              (names_rank(address)
                                   ? ": the address is one of the cluster's window (mapa), this instruction wants the block's own" : "") +
                              at(self, site));
}

bool in_window(const Thread& self, u64 address) { return address - self.shared_window < kArenaBytes; }
const LocalFrame* find_frame(const Thread& self, u64 address) {
    const LocalFrame* frame = self.locals;
    while (frame && address - frame->begin >= frame->bytes) frame = frame->outer;
    return frame;
}
bool in_local(const Thread& self, u64 address) { return find_frame(self, address); }

}  // namespace

void aligned(Thread& self, u64 address, u32 bytes, Site site) {
    if (address & (bytes - 1)) misaligned(self, address, bytes, kRead | kWrite, site, "global");
}

void* reach_global(Thread& self, u64 address, u32 bytes, u32 access, Site site, const void* stored) {
    return reach_element(self, address, bytes, access, site, stored, true);
}

void* reach_global_run(Thread& self, u64 address, u32 bytes, u32 alignment, u32 access, Site site, const void* stored) {
    return reach_range(self, address, bytes, alignment, access, site, stored, true);
}

void* reach_run(Thread& self, u64 address, u32 bytes, u32 alignment, u32 access, Site site) {
    return reach_range(self, address, bytes, alignment, access, site, nullptr, false);
}

void check_shared(Thread& self, u64 address, u32 bytes, u32 alignment, u32 access, Site site) {
    if (address >= machine.shared_bytes || machine.shared_bytes - address < bytes) outside_shared(self, address, bytes, access, site);
    if (address & (alignment - 1)) misaligned(self, address, alignment, access, site, "shared");
}

void* reach_constant(Thread& self, u64 address, u32 bytes, u32 access, Site site) {
    if (in_own_stack(self, address)) return reinterpret_cast<void*>(address);  // a function's parameter
    return reach_range(self, address, bytes, bytes, access, site, nullptr, false);
}

void* reach_shared(Thread& self, u64 address, u32 bytes, u32 access, Site site, const void* stored) {
    if (address >= machine.shared_bytes || machine.shared_bytes - address < bytes) {
        if (address - kReservedShared >= kReservedBytes) outside_shared(self, address, bytes, access, site);
    }
    if (address & (bytes - 1)) misaligned(self, address, bytes, access, site, "shared");
    u32 shared = static_cast<u32>(address);
    u64& word = machine.readable[shared / 64];
    u64 bits = bits_of(shared, bytes);
    if (access & kRead && (word & bits) != bits) not_readable(self, shared, bytes, site);
    u8* memory = machine.arena + shared;
    const u8* before = memory;
    if (access & kWrite) {
        if (const PendingCopy* copy = find_pending(shared, bytes)) unfinished(self, *copy, shared, "writes", site);
        bool written = (word & bits) == bits;
        if (stored && written && same_bytes(memory, stored, bytes)) access |= kSilent;
        else if (!(access & kRead)) stirred();
        memory_changed();
        if (!written) before = nullptr;  // nothing was there to be compared with
        word |= bits;
        if (machine.module->async_proxy) note_store(self, shared, bytes);
    }
    if (machine.races) race_access(self, true, shared, bytes, access, site, {before, stored});
    if (machine.counting) count_access(self, true, shared, bytes, access, site);
    return memory;
}

void heap_allocate(Thread& self, u64 bytes, void* answer, Site site) {
    u64 address = 0;
    if (bytes && bytes <= kHeapBytes - heap.bytes) {
        void* memory = aligned_alloc(16, (bytes + 15) / 16 * 16);
        memset(memory, 0xff, bytes);
        address = reinterpret_cast<u64>(memory);
        heap.pieces[address] = {address, bytes, "memory of malloc, " + where(site), true, true, true};
        heap.bytes += bytes;
        if (machine.races) race_forget(address, bytes);  // of what lay there before
    }
    memcpy(answer, &address, sizeof address);
    stirred();
    (void)self;
}

void heap_free(Thread& self, u64 address, Site site) {
    if (!address) return;
    auto found = heap.pieces.find(address);
    if (found == heap.pieces.end()) {
        fail("call", text("free of address 0x%llx, which malloc did not give or which is free already",
                          static_cast<unsigned long long>(address)) + at(self, site));
    }
    static const Range nothing{0, 0, "", false, false, false};
    for (const Range*& range : machine.range_of_site) {
        if (range == &found->second) range = &nothing;
    }
    heap.bytes -= found->second.bytes;
    heap.pieces.erase(found);
    free(reinterpret_cast<void*>(address));
}

// The text at a generic address, of at most so many characters.
std::string read_text(Thread& self, u64 address, Site site) {
    constexpr size_t kMostCharacters = 4096;
    std::string found;
    for (; found.size() < kMostCharacters; address++) {
        char c = *static_cast<const char*>(reach_generic(self, address, 1, kRead, site));
        if (!c) break;
        found += c;
    }
    return found;
}

void* reach_local(Thread& self, u64 address, u32 bytes, u32 access, Site site) {
    const LocalFrame* frame = find_frame(self, address);
    if (!frame || frame->bytes - (address - frame->begin) < bytes) {
        if (!frame) frame = self.locals;
        u64 begin = frame ? frame->begin : 0, size = frame ? frame->bytes : 0;
        fail("out-of-bounds", text("out-of-bounds %s of %u bytes at offset %lld of the thread's %llu bytes of local memory",
                                   verb(access), bytes, static_cast<long long>(address - begin),
                                   static_cast<unsigned long long>(size)) + at(self, site));
    }
    if (address & (bytes - 1)) misaligned(self, address, bytes, access, site, "local");
    return reinterpret_cast<void*>(address);
}

void* reach_cluster(Thread& self, u64 address, u32 bytes, u32 access, Site site, const void* stored) {
    Reach there(self, address, site);
    return reach_shared(self, offset_of(address), bytes, access, site, stored);
}

void* reach_generic(Thread& self, u64 address, u32 bytes, u32 access, Site site, const void* stored) {
    if (in_window(self, address)) return reach_shared(self, address - self.shared_window, bytes, access, site, stored);
    if (machine.cluster_blocks > 1 && is_in_cluster(self, address)) {
        return reach_cluster(self, generic_to_cluster(self, address), bytes, access, site, stored);
    }
    if (in_local(self, address)) return reach_local(self, address, bytes, access, site);
    return reach_element(self, address, bytes, access, site, stored, false);
}

bool is_shared(Thread& self, u64 address) { return in_window(self, address); }

bool is_in_cluster(Thread& self, u64 address) {
    if (in_window(self, address)) return true;
    if (machine.cluster_blocks == 1) return false;
    const std::vector<Slot*>& members = self.fiber->slot->cluster->members;
    auto holds = [&](const Slot* slot) { return address - reinterpret_cast<u64>(slot->block.arena) < kArenaBytes; };
    return std::any_of(members.begin(), members.end(), holds);
}

u64 generic_to_cluster(Thread& self, u64 address) {
    if (in_window(self, address)) return address - self.shared_window;
    if (machine.cluster_blocks > 1) {
        const std::vector<Slot*>& members = self.fiber->slot->cluster->members;
        for (u32 rank = 0; rank < members.size(); rank++) {
            u64 offset = address - reinterpret_cast<u64>(members[rank]->block.arena);
            if (offset < kArenaBytes) return mapped(rank, offset);
        }
    }
    return address - self.shared_window;  // out of bounds, wherever it is used
}

u64 cluster_to_generic(Thread& self, u64 address) {
    const u32 rank = rank_of(self, address);
    const std::vector<Slot*>& members = self.fiber->slot->cluster->members;
    if (rank >= members.size()) return self.shared_window + address;
    return reinterpret_cast<u64>(members[rank]->block.arena) + offset_of(address);
}
bool is_local(Thread& self, u64 address) { return in_local(self, address); }
bool is_constant(Thread&, u64 address) {
    const Range* range = find_range(address, 1, false, false, 0);
    return range && !range->global;
}

// --- polling --------------------------------------------------------------------------------------------------------

namespace {

Poll* find_poll(Fiber& fiber, u64 address, Site site) {
    Poll* end = fiber.polls + kPolls;
    Poll* found = std::find_if(fiber.polls, end, [&](const Poll& p) { return p.address == address && p.site == site; });
    return found == end ? nullptr : found;
}

}  // namespace

void polled(Thread& self, u64 address, u64 value, u32 access, Site site) {
    Fiber& fiber = *self.fiber;
    const Poll now{address, value, site};
    bool again = fiber.seen == now;
    fiber.seen = now;
    if (access & kStrong) {
        Poll* known = find_poll(fiber, address, site);
        again = known && known->value == value;
        if (known && !again) machine.restless = 0;  // what it waited for came
        if (!known) known = &fiber.polls[fiber.next_poll++ % kPolls];
        const bool before = known->again && *known == now;
        *known = now;
        known->again = before || again;
    }
    if (again) yield_to_others(site);
}

void atomic_done(Thread& self, u64 address, bool did_change, u32 access, Site site) {
    if (!did_change) return polled(self, address, 0, kStrong, site);
    changed(address);
    if (find_poll(*self.fiber, address, site)) machine.restless = 0;
    // Another block may find the lock taken: in every order but the first it does now and then.
    if (access & kExchange && !in_window(self, address) && machine.seed && !machine.counting && random_number() % 4 == 0) preempt();
}

// --- asynchronous copies: they land as late as the program allows, so that a missing wait is seen -------------------

void new_block_memory() {
    if (!machine.arena) {
        machine.arena = static_cast<u8*>(aligned_alloc(kArenaBytes, kArenaBytes));
        machine.readable = static_cast<u64*>(calloc(kArenaBytes / 64 + 1, sizeof(u64)));
    }
    memset(machine.arena, 0xff, machine.shared_bytes);  // NaN in every floating-point format
    memset(machine.readable, 0, (machine.shared_bytes / 64 + 1) * sizeof(u64));
    memset(machine.arena + kReservedShared, 0, kReservedBytes);
    memset(machine.readable + kReservedShared / 64, 0xff, kReservedBytes / 8);
    machine.pending_copies = 0;
}

void begin_copy(Thread& self, u32 shared, u32 bytes, Site site) {
    if (const PendingCopy* copy = find_pending(shared, bytes)) unfinished(self, *copy, shared, "copies to", site);
    each_word(shared, bytes, [](u32 word, u64 bits) {
        machine.readable[word] &= ~bits;
        copies->bits[word] |= bits;
    });
    if (machine.races) race_access(self, true, shared, bytes, kWrite | kCopy, site);
    copies->pending[shared] = {shared, bytes, site};
    machine.pending_copies += bytes;
}

void land_copy(Thread& self, u32 shared, const void* data, u32 bytes, Site site) {
    memcpy(machine.arena + shared, data, bytes);
    forget_stores(shared, bytes);
    each_word(shared, bytes, [](u32 word, u64 bits) {
        machine.readable[word] |= bits;
        copies->bits[word] &= ~bits;
    });
    if (machine.races) race_access(self, true, shared, bytes, kWrite | kCopy, site);
    if (copies->pending.erase(shared)) machine.pending_copies -= bytes;
}

}  // namespace sim
