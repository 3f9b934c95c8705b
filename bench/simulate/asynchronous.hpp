// What the asynchronous parts of the runtime share: copies in flight, mbarriers, the proxies. Kernels do not see it.
//
// Asynchronous work is done as late as the program allows, so that a missing wait is seen: a copy lands when somebody
// waits for it, wgmma runs when its warpgroup waits for it. Under some seeds it is done at once, which is as legal.
#pragma once
#include <functional>

#include "machine.hpp"

namespace sim {

// Whether this piece of asynchronous work is done when it is issued: of eight orders of threads (seeds) always in one,
// in another half of the time, and never in six, seed 0 among them.
bool lands_at_once();

// Work under way that an mbarrier waits for: `land` does it, then so many bytes and arrivals are counted.
struct Flight {
    std::function<void()> land;
    Thread* issuer;
    u32 bytes, arrivals;
};
// The thread's cp.async copies up to a number, in the order of their issue, land; the number of the last that any issued.
void land_copies(Thread& self, u64 last);
u64 newest_copy();
// `barrier` is an offset in the shared memory that is visited, or else the own block's.
void take_off(Thread& self, u64 barrier, Flight flight, Site site);
void check_shown(Thread& self, u64 barrier, Site site);  // to the async proxy
void expect_arrivals(Thread& self, u64 barrier, u32 more, Site site);

// The async proxy (TMA, bulk copies, wgmma) sees what stores and cp.async wrote to shared memory only after
// fence.proxy.async.
void fence_async_proxy(Thread& self);
u32 fenced_at(const Thread& self);              // when a thread made its last one, in numbers of such fences, …
u32 fences_so_far();                            // … of which there were so many
u32 proxy_time(u32 first_thread, u32 threads);  // of the latest such fence among these threads
void check_proxy(Thread& self, u32 shared, u32 bytes, u32 fenced_at, const char* reader, Site site);

// Swizzles permute the 16-byte pieces of shared memory by the bits of their own address: 0, 32, 64 or 128 bytes wide.
inline u32 swizzled(u32 address, u32 width) {
    u32 pieces = width ? (width - 1) & 0x70 : 0;
    return address ^ (address >> 3 & pieces);
}

// Reads and writes of whole tiles are no requests of a warp, so they are left out of the count of wavefronts.
class Uncounted {
   public:
    Uncounted() { machine.counting = false; }
    ~Uncounted() { machine.counting = was_; }
    Uncounted(const Uncounted&) = delete;
    Uncounted& operator=(const Uncounted&) = delete;

   private:
    bool was_ = machine.counting;
};

void check_bulk_size(Thread& self, u32 bytes, Site site);
void check_same_block(const Thread& self, u64 to, u64 barrier, Site site);

// For .aligned instructions: all lanes must be at the same one.
void require_one_instruction(const Lanes& lanes, const char* name);

}  // namespace sim
