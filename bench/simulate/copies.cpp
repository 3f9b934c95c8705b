// What the generic proxy does to shared memory: cp.async by single threads, and who wrote what, for the check that the
// async proxy was told of it.
#include <algorithm>

#include "asynchronous.hpp"

namespace sim {

// Of eight orders of threads one lands everything at once, and one half of it.
bool lands_at_once() {
    u64 kind = machine.seed % 8;
    return kind == 7 || (kind == 6 && random_number() % 2);
}

// --- the fence between the proxies ----------------------------------------------------------------------------------

namespace {

constexpr u32 kPiece = 16;

// Who wrote each 16 bytes of shared memory by stores or cp.async.
struct Written {
    u32 time;
    const Thread* thread;
};

struct StoreState {
    std::vector<Written> written;

    void begin() { written.clear(); }
};
OfMemory<StoreState> stores;

struct FenceState {
    u32 fenced[kMaxThreads];  // when a thread last fenced the async proxy

    void begin() { memset(fenced, 0, sizeof fenced); }
};
OfBlock<FenceState> fences;
u32 now = 1;  // counts such fences; those of blocks long gone do no harm

}  // namespace

void note_store(const Thread& self, u32 shared, u32 bytes) {
    if (shared >= kReservedShared) return;
    if (stores->written.empty()) stores->written.resize(machine.shared_bytes / kPiece + 1);
    for (u32 i = shared / kPiece; i <= (shared + bytes - 1) / kPiece; i++) stores->written[i] = {now, &self};
}

void forget_stores(u32 shared, u32 bytes) {
    if (stores->written.empty()) return;
    for (u32 i = (shared + kPiece - 1) / kPiece; i < (shared + bytes) / kPiece; i++) stores->written[i] = {};
}

void fence_async_proxy(Thread& self) { fences->fenced[self.index] = ++now; }

u32 proxy_time(u32 first_thread, u32 threads) {
    u32 latest = 0;
    for (u32 i = first_thread; i < first_thread + threads && i < kMaxThreads; i++)
        latest = fences->fenced[i] > latest ? fences->fenced[i] : latest;
    return latest;
}

// A fence of the writer after its store is what kernels usually have; one of the reader, once it knows of the store,
// does too.
void check_proxy(Thread& self, u32 shared, u32 bytes, u32 fenced_at, const char* reader, Site site) {
    if (stores->written.empty()) return;
    for (u32 i = shared / kPiece; i <= (shared + bytes - 1) / kPiece; i++) {
        const Written& store = stores->written[i];
        if (!store.time) continue;  // written by nobody, or by a bulk copy
        if (store.time < fences.of(*store.thread).fenced[store.thread->index] || store.time < fenced_at) continue;
        fail("proxy", std::string(reader) + text(" reads shared memory byte %u, which ", i * kPiece) +
                          (store.thread->fiber->slot == self.fiber->slot ? thread_name(store.thread->index) : who(*store.thread)) +
                          " wrote by a store or cp.async, without a fence.proxy.async between, " + where(site) + ", " +
                          who(self));
    }
}

u32 fenced_at(const Thread& self) { return fences.of(self).fenced[self.index]; }

u32 fences_so_far() { return now; }

// --- cp.async: 4, 8 or 16 bytes a thread; what lies behind `valid` is filled with zeros -----------------------------

namespace {

u64 copies_issued = 0;

void land(Thread& self, const AsyncCopy& copy) {
    u8 data[16] = {};
    memcpy(data, reinterpret_cast<const void*>(copy.global), copy.valid);
    land_copy(self, copy.shared, data, copy.bytes, copy.site);
    if (machine.module->async_proxy) note_store(self, copy.shared, copy.bytes);  // by the manual it works in the generic proxy, like an ordinary store
}

void land_all(Thread& self, std::vector<AsyncCopy>& copies) {
    for (const AsyncCopy& copy : copies) land(self, copy);
    copies.clear();
}

}  // namespace

u64 newest_copy() { return copies_issued; }

void land_copies(Thread& self, u64 last) {
    auto land_from = [&](std::vector<AsyncCopy>& copies) {
        auto newer = std::partition(copies.begin(), copies.end(), [&](const AsyncCopy& c) { return c.number <= last; });
        for (auto copy = copies.begin(); copy != newer; ++copy) land(self, *copy);
        copies.erase(copies.begin(), newer);
    };
    for (auto& group : self.fiber->copy_groups) land_from(group);
    land_from(self.fiber->open_copies);
}

void copy_async(Thread& self, u64 shared, u64 global, u32 bytes, u32 valid, Site site) {
    check_shared(self, shared, bytes, bytes, kWrite, site);
    valid = std::min(valid, bytes);
    if (valid) reach_global_run(self, global, valid, bytes, kRead, site);
    if (machine.counting) count_access(self, true, shared, bytes, kWrite, site);
    begin_copy(self, static_cast<u32>(shared), bytes, site);
    AsyncCopy copy{static_cast<u32>(shared), global, bytes, valid, site, ++copies_issued};
    if (lands_at_once()) land(self, copy);
    else self.fiber->open_copies.push_back(copy);
}

void copy_async_commit(Thread& self) {
    self.fiber->copy_groups.push_back(std::move(self.fiber->open_copies));
    self.fiber->open_copies.clear();
}

void copy_async_wait(Thread& self, u32 newest) {
    auto& groups = self.fiber->copy_groups;
    while (groups.size() > newest) {
        land_all(self, groups.front());
        groups.erase(groups.begin());
    }
}

void copy_async_wait_all(Thread& self) {
    copy_async_commit(self);
    copy_async_wait(self, 0);
}

}  // namespace sim
