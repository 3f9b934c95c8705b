// What blocks of a cluster write to each other's shared memory, while they go on: st.async, red.async, and copies.
#include "asynchronous.hpp"
#include "cluster.hpp"

namespace sim {

namespace {

// Shared memory of the thread's own block, as a copy reads it that lands somewhere else.
std::vector<u8> read_own(Thread& self, u32 shared, u32 bytes, Site site) {
    constexpr u32 kPiece = 16;
    Slot& home = *self.fiber->slot;
    if (has_ended(home)) {
        fail("cluster", "a copy reads shared memory of " + block_name(home.block.block_serial) + ", which has ended, " + where(site) + ", " + who(self));
    }
    Visit visit(home);
    Uncounted guard;
    std::vector<u8> data(bytes);
    for (u32 i = 0; i < bytes; i += kPiece) memcpy(&data[i], reach_shared(self, shared + i, kPiece, kRead, site), kPiece);
    return data;
}

// One access for each element: as an atomic that nobody hears the answer of.
void reduce_here(Thread& self, u32 shared, const u8* from, u32 bytes, Combine combine, u32 element, Site site) {
    Uncounted guard;
    for (u32 i = 0; i < bytes; i += element) {
        combine(static_cast<u8*>(reach_shared(self, shared + i, element, kRead | kWrite | kStrong, site)), from + i);
        changed(shared + i);
    }
}

u32 check_send(Thread& self, u64 from_shared, u32 bytes, Site site) {
    check_bulk_size(self, bytes, site);
    check_shared(self, from_shared, bytes, 16, kRead, site);
    check_proxy(self, static_cast<u32>(from_shared), bytes, proxy_time(self.index, 1), "a bulk copy", site);
    return static_cast<u32>(from_shared);
}

}  // namespace

void store_async(Thread& self, u64 to, const void* value, u32 bytes, u64 barrier, Site site) {
    check_same_block(self, to, barrier, site);
    Reach there(self, to, site);
    check_shared(self, offset_of(to), bytes, bytes, kWrite, site);
    u32 shared = static_cast<u32>(offset_of(to));
    begin_copy(self, shared, bytes, site);
    std::vector<u8> data(static_cast<const u8*>(value), static_cast<const u8*>(value) + bytes);
    auto land = [=, thread = &self] { land_copy(*thread, shared, data.data(), bytes, site); };
    take_off(self, offset_of(barrier), {land, &self, bytes, 0}, site);
}

void reduce_async(Thread& self, u64 to, u64 value, u32 bytes, Combine combine, u64 barrier, Site site) {
    check_same_block(self, to, barrier, site);
    Reach there(self, to, site);
    check_shared(self, offset_of(to), bytes, bytes, kRead | kWrite, site);
    u32 shared = static_cast<u32>(offset_of(to));
    auto land = [=, thread = &self] {
        reduce_here(*thread, shared, reinterpret_cast<const u8*>(&value), bytes, combine, bytes, site);
    };
    take_off(self, offset_of(barrier), {land, &self, bytes, 0}, site);
}

void bulk_send(Thread& self, u64 to, u64 from_shared, u32 bytes, u64 barrier, Site site) {
    u32 source = check_send(self, from_shared, bytes, site);
    check_same_block(self, to, barrier, site);
    Reach there(self, to, site);
    check_shared(self, offset_of(to), bytes, 16, kWrite, site);
    u32 shared = static_cast<u32>(offset_of(to));
    begin_copy(self, shared, bytes, site);
    auto land = [=, thread = &self] { land_copy(*thread, shared, read_own(*thread, source, bytes, site).data(), bytes, site); };
    check_shown(self, offset_of(barrier), site);
    take_off(self, offset_of(barrier), {land, &self, bytes, 0}, site);
}

void bulk_send_reduced(Thread& self, u64 to, u64 from_shared, u32 bytes, Combine combine, u32 element, u64 barrier, Site site) {
    u32 source = check_send(self, from_shared, bytes, site);
    check_same_block(self, to, barrier, site);
    Reach there(self, to, site);
    check_shared(self, offset_of(to), bytes, 16, kRead | kWrite, site);
    u32 shared = static_cast<u32>(offset_of(to));
    auto land = [=, thread = &self] {
        reduce_here(*thread, shared, read_own(*thread, source, bytes, site).data(), bytes, combine, element, site);
    };
    check_shown(self, offset_of(barrier), site);
    take_off(self, offset_of(barrier), {land, &self, bytes, 0}, site);
}

}  // namespace sim
