// Copies that take time: cp.async by single threads, bulk copies, and TMA's tiles with their swizzles and zero-filled
// edges.
#include <algorithm>
#include <deque>
#include <numeric>

#include "asynchronous.hpp"
#include "hopper.hpp"

namespace sim {

// --- cp.async and mbarriers -----------------------------------------------------------------------------------------

// Those of the thread's copies that were issued up to now, and have not landed by a wait of its own, land for the
// barrier.
void copy_async_arrive(Thread& self, u64 barrier, bool counts_itself, Site site) {
    if (counts_itself) expect_arrivals(self, barrier, 1, site);
    auto land_older = [thread = &self, last = newest_copy()] { land_copies(*thread, last); };
    take_off(self, barrier, {land_older, &self, 0, 1}, site);
}

// --- tensor maps: what tensor_map.py writes in place of the driver's 128 bytes --------------------------------------

namespace {

constexpr u32 kMostAxes = 5;
constexpr u64 kMapMark = 0x70616d2d726f736eull;
constexpr u32 kMapBytes = 128;
constexpr u32 kMapAlign = 64;
constexpr u32 kPiece = 16;  // swizzles move pieces of so many bytes
constexpr u32 kTileAlign = 128;

struct TensorMap {
    u64 mark, base;
    u32 axes, element, swizzle, kind;  // kind: of the elements, for reductions (KINDS in tensor_map.py)
    u32 size[kMostAxes], box[kMostAxes];  // the contiguous axis first
    u64 stride[kMostAxes - 1];            // in bytes, of the axes behind the first

    u32 row_bytes() const { return box[0] * element; }
    u32 rows() const {
        return std::accumulate(box + 1, box + axes, 1u, [](u32 a, u32 b) { return a * b; });
    }
    u32 bytes() const { return rows() * row_bytes(); }
};
static_assert(sizeof(TensorMap) <= kMapBytes);

TensorMap read_map(Thread& self, u64 address, u32 rank, Site site) {
    TensorMap map;
    memcpy(&map, reach_run(self, address, kMapBytes, kMapAlign, kRead, site), sizeof map);
    const char* problem = map.mark != kMapMark ? "the parameter is no tensor map" : nullptr;
    if (!problem && map.axes != rank) problem = "the map has another number of axes than the instruction";
    if (problem) fail("tensor map", std::string(problem) + ", " + where(site) + ", " + who(self));
    return map;
}

// One contiguous row of a tile: where it lies in global memory, and which of its elements exist.
struct Row {
    u64 address;     // of element `begin`
    u32 begin, end;  // elements of the row inside of the tensor; none where they are equal
};

struct Tile {
    TensorMap map;
    s64 at[kMostAxes];

    Row row(u32 number) const {
        u64 address = map.base;
        for (u32 axis = 1; axis < map.axes; axis++) {
            s64 position = at[axis] + number % map.box[axis];
            number /= map.box[axis];
            if (position < 0 || position >= map.size[axis]) return {0, 0, 0};
            address += static_cast<u64>(position) * map.stride[axis - 1];
        }
        s64 begin = std::max<s64>(0, -at[0]), end = std::min<s64>(map.box[0], map.size[0] - at[0]);
        if (begin >= end) return {0, 0, 0};
        address += static_cast<u64>(at[0] + begin) * map.element;
        return {address, static_cast<u32>(begin), static_cast<u32>(end)};
    }
};

Tile tile_at(const TensorMap& map, const s32* at) {
    Tile tile{map, {}};
    for (u32 axis = 0; axis < map.axes; axis++) tile.at[axis] = at[axis];
    return tile;
}

void load_tile(Thread& self, const Tile& tile, u32 shared, Site site) {
    const u32 row_bytes = tile.map.row_bytes(), element = tile.map.element;
    std::vector<u8> data(tile.map.bytes()), row(row_bytes);
    for (u32 r = 0; r < tile.map.rows(); r++) {
        Row source = tile.row(r);
        std::fill(row.begin(), row.end(), u8{0});
        if (u32 bytes = (source.end - source.begin) * element) {
            memcpy(&row[source.begin * element], reach_global_run(self, source.address, bytes, element, kRead, site),
                   bytes);
        }
        for (u32 i = 0; i < row_bytes; i += kPiece) {
            memcpy(&data[swizzled(shared + r * row_bytes + i, tile.map.swizzle) - shared], &row[i], kPiece);
        }
    }
    land_copy(self, shared, data.data(), tile.map.bytes(), site);
}

// One access for each element: as an atomic that nobody hears the answer of.
void reduce_into(Thread& self, u64 to, const u8* from, u32 bytes, Combine combine, u32 element, Site site) {
    for (u32 i = 0; i < bytes; i += element) {
        u8* into = static_cast<u8*>(reach_global_run(self, to + i, element, element, kRead | kWrite | kStrong, site));
        combine(into, from + i);
        changed(to + i);
    }
}

void store_tile(Thread& self, const Tile& tile, u32 shared, Site site, Combine combine = nullptr) {
    const u32 row_bytes = tile.map.row_bytes(), element = tile.map.element;
    std::vector<u8> row(row_bytes);
    for (u32 r = 0; r < tile.map.rows(); r++) {
        for (u32 i = 0; i < row_bytes; i += kPiece) {
            Uncounted guard;
            u32 piece = swizzled(shared + r * row_bytes + i, tile.map.swizzle);
            memcpy(&row[i], reach_shared(self, piece, kPiece, kRead, site), kPiece);
        }
        Row target = tile.row(r);
        if (u32 bytes = (target.end - target.begin) * element) {
            const u8* from = &row[target.begin * element];
            if (combine) reduce_into(self, target.address, from, bytes, combine, element, site);
            else memcpy(reach_global_run(self, target.address, bytes, element, kWrite, site, from), from, bytes);
        }
    }
}

// --- bulk groups: stores from shared memory, which read it as late as the thread waits for them ---------------------

using Work = std::function<void()>;
struct BulkGroups {
    std::vector<Work> open;
    std::deque<std::vector<Work>> committed;
};
struct BulkState {
    std::vector<BulkGroups> groups;  // by thread, where the block has any

    void begin() { groups.clear(); }
    BulkGroups& of(const Thread& thread) {
        if (groups.empty()) groups.resize(machine.threads);
        return groups[thread.index];
    }
};
OfBlock<BulkState> bulk;

void store_later(Thread& self, Work work) {
    if (lands_at_once()) work();
    else bulk->of(self).open.push_back(std::move(work));
}

// A load into the shared memory that is visited. Multicast reads global memory once, for the first of its blocks.
void load_tile_here(Thread& self, const Tile& tile, u64 to_shared, u64 barrier, bool counted, Site site) {
    check_shared(self, to_shared, tile.map.bytes(), kTileAlign, kWrite, site);
    u32 shared = static_cast<u32>(to_shared);
    begin_copy(self, shared, tile.map.bytes(), site);
    auto land = [=, thread = &self] {
        const bool counting = machine.counting;
        machine.counting &= counted;
        load_tile(*thread, tile, shared, site);
        machine.counting = counting;
    };
    check_shown(self, barrier, site);
    take_off(self, barrier, {land, &self, tile.map.bytes(), 0}, site);
}

void load_bytes_here(Thread& self, u64 to_shared, u64 from, u32 bytes, u64 barrier, Site site) {
    check_shared(self, to_shared, bytes, kPiece, kWrite, site);
    u32 shared = static_cast<u32>(to_shared);
    begin_copy(self, shared, bytes, site);
    auto land = [=, thread = &self] { land_copy(*thread, shared, reinterpret_cast<const void*>(from), bytes, site); };
    check_shown(self, barrier, site);
    take_off(self, barrier, {land, &self, bytes, 0}, site);
}

// Calls `load(first)` in the shared memory of each block of a mask.
template <class Load>
void in_each(Thread& self, u32 blocks, Site site, Load load) {
    if (blocks >> machine.cluster_blocks) {
        fail("cluster", text("a multicast to the blocks of mask 0x%x, but the cluster has %u, ", blocks, machine.cluster_blocks) + where(site) + ", " + who(self));
    }
    bool first = true;
    each_lane(blocks, [&](u32 rank) {
        Reach there(self, mapped(rank, 0), site);
        load(first);
        first = false;
    });
}

}  // namespace

void check_bulk_size(Thread& self, u32 bytes, Site site) {
    if (bytes % kPiece)
        fail("misaligned",
             text("a bulk copy of %u bytes, no multiple of 16, ", bytes) + where(site) + ", " + who(self));
}

void tile_load(Thread& self, u64 to_shared, u64 map, const s32* at, u32 rank, u64 barrier, Site site) {
    Tile tile = tile_at(read_map(self, map, rank, site), at);
    check_same_block(self, to_shared, barrier, site);
    Reach there(self, to_shared, site);
    load_tile_here(self, tile, offset_of(to_shared), offset_of(barrier), true, site);
}

void tile_multicast(Thread& self, u64 to_shared, u64 map, const s32* at, u32 rank, u64 barrier, u32 blocks, Site site) {
    Tile tile = tile_at(read_map(self, map, rank, site), at);
    in_each(self, blocks, site, [&](bool first) { load_tile_here(self, tile, offset_of(to_shared), offset_of(barrier), first, site); });
}

void tile_store(Thread& self, u64 map, const s32* at, u32 rank, u64 from_shared, Site site) {
    Tile tile = tile_at(read_map(self, map, rank, site), at);
    check_shared(self, from_shared, tile.map.bytes(), kTileAlign, kRead, site);
    u32 shared = static_cast<u32>(from_shared);
    check_proxy(self, shared, tile.map.bytes(), proxy_time(self.index, 1), "a TMA store", site);
    store_later(self, [thread = &self, tile, shared, site] { store_tile(*thread, tile, shared, site); });
}

void tile_reduce(Thread& self, u64 map, const s32* at, u32 rank, u64 from_shared, Site site) {
    static const Combine kAdd[] = {nullptr, add_to<f32>, add_half_to<F16>, add_half_to<Bf16>, add_to<f64>, add_to<u32>, add_to<u64>};
    Tile tile = tile_at(read_map(self, map, rank, site), at);
    const Combine combine = tile.map.kind < sizeof kAdd / sizeof *kAdd ? kAdd[tile.map.kind] : nullptr;
    if (!combine) fail("tensor map", "elements of this map cannot be added, " + where(site) + ", " + who(self));
    check_shared(self, from_shared, tile.map.bytes(), kTileAlign, kRead, site);
    u32 shared = static_cast<u32>(from_shared);
    check_proxy(self, shared, tile.map.bytes(), proxy_time(self.index, 1), "a TMA reduction", site);
    store_later(self, [thread = &self, tile, shared, site, combine] { store_tile(*thread, tile, shared, site, combine); });
}

void bulk_reduce(Thread& self, u64 to, u64 from_shared, u32 bytes, Combine combine, u32 element, Site site) {
    check_bulk_size(self, bytes, site);
    check_shared(self, from_shared, bytes, kPiece, kRead, site);
    aligned(self, to, kPiece, site);
    u32 shared = static_cast<u32>(from_shared);
    check_proxy(self, shared, bytes, proxy_time(self.index, 1), "a bulk reduction", site);
    store_later(self, [=, thread = &self] {
        std::vector<u8> data(bytes);
        for (u32 i = 0; i < bytes; i += kPiece) {
            Uncounted guard;
            memcpy(&data[i], reach_shared(*thread, shared + i, kPiece, kRead, site), kPiece);
        }
        reduce_into(*thread, to, data.data(), bytes, combine, element, site);
    });
}

void bulk_load(Thread& self, u64 to_shared, u64 from, u32 bytes, u64 barrier, Site site) {
    check_bulk_size(self, bytes, site);
    check_same_block(self, to_shared, barrier, site);
    reach_global_run(self, from, bytes, kPiece, kRead, site);
    Reach there(self, to_shared, site);
    load_bytes_here(self, offset_of(to_shared), from, bytes, offset_of(barrier), site);
}

void bulk_multicast(Thread& self, u64 to_shared, u64 from, u32 bytes, u64 barrier, u32 blocks, Site site) {
    check_bulk_size(self, bytes, site);
    reach_global_run(self, from, bytes, kPiece, kRead, site);
    in_each(self, blocks, site, [&](bool) { load_bytes_here(self, offset_of(to_shared), from, bytes, offset_of(barrier), site); });
}

void bulk_store(Thread& self, u64 to, u64 from_shared, u32 bytes, Site site) {
    check_bulk_size(self, bytes, site);
    check_shared(self, from_shared, bytes, kPiece, kRead, site);
    u32 shared = static_cast<u32>(from_shared);
    check_proxy(self, shared, bytes, proxy_time(self.index, 1), "a bulk store", site);
    store_later(self, [=, thread = &self] {
        std::vector<u8> data(bytes);
        for (u32 i = 0; i < bytes; i += kPiece) {
            Uncounted guard;
            memcpy(&data[i], reach_shared(*thread, shared + i, kPiece, kRead, site), kPiece);
        }
        memcpy(reach_global_run(*thread, to, bytes, kPiece, kWrite, site, data.data()), data.data(), bytes);
    });
}

void bulk_commit(Thread& self) {
    BulkGroups& groups = bulk->of(self);
    groups.committed.push_back(std::move(groups.open));
    groups.open.clear();
}

// .read waits until shared memory was read, the other form also until global memory was written: here both happen at
// once.
void bulk_wait(Thread& self, u32 newest) {
    auto& committed = bulk->of(self).committed;
    while (committed.size() > newest) {
        std::vector<Work> group = std::move(committed.front());
        committed.pop_front();
        for (Work& work : group) work();
    }
}

}  // namespace sim
