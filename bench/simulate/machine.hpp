// The runtime's own view of the simulated machine: shared by runtime, warp, memory, races and count. Kernels do not see it.
//
// Seams for further instructions (tensor cores, TMA, mbarrier …), all declared here:
//   collective()                  lanes of a warp meet; the last to arrive runs `perform` for all of them
//   park() / wake()               a thread waits for something that other threads bring about
//   begin_copy() / land_copy()    an asynchronous write to shared memory, which nobody may read before it has landed
//   reach_global/shared()         a checked access (memory.hpp)
//   SyncPoint, release/acquire    a synchronisation object, for the race checker
//   OfBlock<State>, OfMemory<…>   state that each block, or its shared memory, has for itself
//   Reach                         the shared memory of a block of the cluster, where an address names one
// README.md walks through an example.
#pragma once
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "memory.hpp"
#include "runtime.hpp"

namespace sim {

// --- reports --------------------------------------------------------------------------------------------------------

// Abandon the launch with a report. `kind` is a short fixed phrase, by which tests know it.
[[noreturn]] void fail(const char* kind, const std::string& message);
// Keep a report and go on; one of each `key`.
void note(const char* kind, const std::string& key, const std::string& message);
// Keep what is no error, but worth to be known; one of each `kind` and `key`.
void remark(const char* kind, const std::string& key, const std::string& message);
std::string where(Site site);         // "naive.cu:34"
std::string who(const Thread& self);  // "block (0,0,0) thread (5,0,0)"
std::string thread_name(u32 index);   // "thread (5,0,0)", of the running block
std::string block_name(u32 serial);   // "block (5,0,0)", of any block of this launch
std::string memory_name(bool shared, u64 address);  // "`out` byte 12"
std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
bool same_place(Site a, Site b);

// --- the machine ----------------------------------------------------------------------------------------------------

constexpr u32 kMaxThreads = 1024;
constexpr u32 kMaxWarps = kMaxThreads / kWarp;
constexpr u32 kBarriers = 16;
constexpr u32 kSharedLimit = 227 * 1024;  // sm_90: bytes of shared memory a block can have
constexpr u32 kStaticSharedLimit = 48 * 1024;  // of those, static ones: ptxas refuses more

enum class State : u8 { Ready, Barrier, Warp, Active, Parked, Done };

struct Operation;
struct Slot;
struct Cluster;

struct AsyncCopy {
    u32 shared;
    u64 global;
    u32 bytes, valid;
    Site site;
    u64 number;  // of all copies, in the order of their issue
};

struct Poll {
    u64 address = 0, value = 0;
    Site site = ~0u;
    bool again = false;  // it was the same at least twice

    bool operator==(const Poll& other) const {
        return address == other.address && value == other.value && site == other.site;
    }
};
constexpr u32 kPolls = 4;  // places that one loop may ask in turn

struct Fiber {
    Thread thread;
    void* stack_pointer = nullptr;
    u8* stack = nullptr;
    State state = State::Done;
    const char* waits_for = "";  // for the deadlock report
    Site site = 0;               // where it waits
    const Operation* operation = nullptr;
    u32 mask = 0;
    void* payload = nullptr;
    u32 votes = 0, voters = 0;  // what the last barrier counted
    Poll polls[kPolls];  // what strong loads saw last, and where atomics failed; the oldest lies at `next_poll`
    u32 next_poll = 0;
    Poll seen;           // by any load, once the thread is watched
    bool polling = false;
    u32 long_loops = 0;
    Slot* slot = nullptr;        // of its block
    bool met_cluster = false;    // it has arrived at the cluster's barrier and not waited there yet
    u32 cluster_phase = 0;       // in which it arrived
    u32 cluster_arrivals = 0, cluster_waits = 0;
    std::vector<AsyncCopy> open_copies;                 // not yet committed
    std::vector<std::vector<AsyncCopy>> copy_groups;    // committed, oldest first
};

struct Warp {
    Fiber* fibers = nullptr;  // of lane 0; lanes lie behind each other
    u32 existing = 0;         // lanes that the block has
    u32 live = 0;             // lanes that have not returned
    u32 waiting = 0;          // lanes that wait in a warp operation
    bool alike = false;       // … and all of them in one, with one mask
};

// A piece of memory that this launch may use.
struct Range {
    u64 begin, bytes;
    std::string name;
    bool writable;
    bool tracked;  // by the race checker: what nobody may write cannot race
    bool global;   // else .param or .const
    u64 parameters = 0;           // that point to it
    u64 pitch = 0, row = ~0ull;   // bytes from row to row, and of a row, where gaps between them are not its own

    bool holds(u64 address, u64 size) const {
        u64 offset = address - begin;
        if (offset >= bytes || bytes - offset < size) return false;
        return !pitch || offset % pitch + size <= row;
    }
};

// A block's shared memory: one arena, and a bit for each byte that may be read. Threads of its cluster reach it, too.
struct BlockMemory {
    u32 owner = 0;            // the block's serial number
    u8* arena = nullptr;
    u64* readable = nullptr;
    u32 pending_copies = 0;   // bytes that asynchronous copies have not written yet
    bool visited = false;     // by threads of another block
};

// Of the block that runs; put aside while another one does.
struct RunningBlock : BlockMemory {
    Dim3 block{};
    u32 block_serial = 0;
    Fiber* fibers = nullptr;
    Warp warps[kMaxWarps];
    u32 live = 0, exited = 0;
    u32 active_requests = 0;  // threads in activemask
    Cluster* cluster = nullptr;
    u32 rank = 0;             // in it
};

struct Machine : RunningBlock {
    // the launch
    const Module* module = nullptr;
    const ModuleKernel* kernel = nullptr;
    Dim3 grid{}, block_size{};
    u32 threads = 0, shared_bytes = 0, dynamic_shared = 0;
    u8** parameters = nullptr;
    u64 seed = 0, random_state = 0;
    bool races = true, counting = false, cooperative = false;
    Dim3 cluster_size{1, 1, 1};
    u32 cluster_blocks = 1;
    bool explicit_cluster = false, any_cluster = false;  // any: more blocks than 8, which not every GPU has
    std::vector<Range> ranges;
    u64 pointers = 0;                         // the parameters that point to memory
    std::vector<const Range*> range_of_site;  // the range that a site used last
    u32 first_block_serial = 0;               // serial numbers count on over launches: older records are stale
    u32 last_serial = 0;
    std::vector<Dim3> blocks;                 // of this launch, by serial number from the first
    Fiber* current = nullptr;
    // who waits in vain
    u32 rounds = 0;    // of all ready threads of the block, since memory changed, in which some polled
    u64 idle = 0;      // polls, and what was woken between them, since memory changed
    u64 restless = 0;  // the same, since a thread returned or saw what it had polled for
    u32 wakes = 0;     // since the last poll
};

extern Machine machine;

inline Value value_of(Site site) { return static_cast<Value>(machine.module->places[site].value); }

u64 random_number();

// --- fibers ---------------------------------------------------------------------------------------------------------

// To wait, a thread says what for, does what may wake it again at once, and gives up the processor until it was woken.
void begin_wait(State state, const char* waits_for, Site site);
void run_another();
void wake(Fiber& fiber);
void yield_to_others(Site site);  // a poll in vain: stay ready, run others; counts towards a deadlock
void preempt();                   // stay ready, run another block if there is one
bool others_could_run();          // blocks, that is
inline void stirred() { machine.idle = machine.rounds = 0; }  // something changed, in this block
inline void park(const char* waits_for, Site site) {
    begin_wait(State::Parked, waits_for, site);
    run_another();
}

// --- clusters (cluster.cpp) ------------------------------------------------------------------------------------------

// An address of shared memory in the cluster's window: an offset, and above it the block's rank and one more; an offset
// alone is the own block's, as the manual has the block's window in the cluster's.
constexpr u32 kRankShift = 24, kMaxRanks = 16;
inline u64 offset_of(u64 address) { return address & ((1ull << kRankShift) - 1); }
u32 rank_of(const Thread& self, u64 address);
u64 mapped(u32 rank, u64 offset);

// As long as it lives, the machine's shared memory is that of a block of this cluster. Nobody may wait meanwhile.
class Visit {
   public:
    explicit Visit(Slot& host);
    ~Visit();
    Visit(const Visit&) = delete;
    Visit& operator=(const Visit&) = delete;

   private:
    Slot* before_;
};

// A visit to the block that an address of the cluster's window names. It must be there: begun, and not yet ended.
class Reach {
   public:
    Reach(Thread& self, u64 address, Site site);
    const u32 rank;

   private:
    Visit visit_;
};
// The block's memory has changed: those of its threads that poll may hope again.
void memory_changed();
bool has_ended(const Slot& slot);
std::string whose_memory();         // " of block (1,0,0)", where it is not the running block's

void cluster_lost_thread(Fiber& fiber);  // it has returned
void cluster_ended_block();              // the running one

// --- warp operations ------------------------------------------------------------------------------------------------

// Lanes of a warp in the same operation. `perform` finds what each lane brought in its payload, and puts results there.
struct Lanes {
    Warp& warp;
    u32 mask;  // the lanes that take part

    template <class Payload>
    Payload& of(u32 lane) const {
        return *static_cast<Payload*>(warp.fibers[lane].payload);
    }
    Thread& thread(u32 lane) const { return warp.fibers[lane].thread; }
    Site site(u32 lane) const { return warp.fibers[lane].site; }
};

struct Operation {
    const char* name;
    void (*perform)(const Lanes&);
    bool whole_warp = false;      // all 32 lanes must take part (.aligned tensor operations)
    bool exited_allowed = false;  // lanes named in the mask may have returned
};

// Wait until the lanes in `mask` are all here with this operation; the last one performs it.
void collective(Thread& self, const Operation& operation, u32 mask, void* payload, Site site);
void try_operation(Warp& warp, u32 mask);  // perform it if all have arrived
void settle_active_masks();                // nobody is ready: whoever is in activemask now is what it answers

// Whether so many bytes are equal; mostly those of one access, which are few.
inline bool same_bytes(const void* a, const void* b, u32 bytes) {
    if (bytes == 4) return !memcmp(a, b, 4);
    if (bytes == 16) return !memcmp(a, b, 16);
    if (bytes == 2) return !memcmp(a, b, 2);
    if (bytes == 8) return !memcmp(a, b, 8);
    return !memcmp(a, b, bytes);
}

template <class Do>
inline void each_lane(u32 mask, Do what) {
    for (; mask; mask &= mask - 1) what(static_cast<u32>(__builtin_ctz(mask)));
}

// --- shared memory and asynchronous writes to it --------------------------------------------------------------------

void begin_copy(Thread& self, u32 shared, u32 bytes, Site site);  // from now on nobody may read these bytes
void land_copy(Thread& self, u32 shared, const void* data, u32 bytes, Site site);  // now they are written
void new_block_memory();

// Accesses of any length, whose alignment is not their size.
void* reach_global_run(Thread& self, u64 address, u32 bytes, u32 alignment, u32 access, Site site, const void* stored = nullptr);
std::string read_text(Thread& self, u64 address, Site site);
bool in_own_stack(const Thread& self, u64 address);
void* reach_run(Thread& self, u64 address, u32 bytes, u32 alignment, u32 access, Site site);  // also parameters and constants
void check_shared(Thread& self, u64 address, u32 bytes, u32 alignment, u32 access, Site site);

// Stores to shared memory in the generic proxy, for the check that the async proxy was told of them (copies.cpp).
void note_store(const Thread& self, u32 shared, u32 bytes);
void forget_stores(u32 shared, u32 bytes);  // a copy has written over them

// --- races on values that nobody uses (unused.cpp) --------------------------------------------------------------------

extern bool poisoning;       // a launch is run again, and loads that raced are answered with rubbish
void unused_new_launch();    // after its ranges are known
// A load and a store of these bytes of global memory race; whether that load was answered with rubbish.
bool unused_race(u64 address, u32 bytes, u32 reading_block, u32 reader, u32 writing_block, u32 writer);
void unused_no_more();       // some other race was found: running it again would not excuse the launch
void* unused_read(const Thread& self, u64 address, u32 bytes);  // rubbish to read instead, or null
// Whether the launch leaves the same whatever those loads read. run_again: false where anything was found.
bool unused_by_all(bool (*run_again)());

// --- the race checker (races.cpp) -----------------------------------------------------------------------------------

using Clocks = std::array<u32, kMaxWarps>;

struct SyncPoint {
    u32 block = 0;                // serial of the block that `known` is about
    u32 known[kMaxWarps] = {};    // by warp: accesses with an earlier clock have happened
    std::vector<u32> heard;       // by block of this launch: what has happened there (races.cpp)
    u32 cluster = 0;              // serial of the first block of the cluster that the rest is about
    u32 begun = 0;                // by rank, a bit: blocks that have begun
    std::vector<Clocks> ranks;    // by rank: what has happened there
    std::vector<u32> ranks_heard; // by block of this launch: what the cluster's blocks have heard of
};

void races_new_launch();
void races_end_of_block();
void race_forget(u64 address, u64 bytes);  // global memory that is new
// What a store writes and what it writes over tell rounding from a race.
struct Stored {
    const void *before = nullptr, *after = nullptr;
};
void race_access(Thread& self, bool shared, u64 address, u32 bytes, u32 access, Site site, Stored stored = {});
void race_exchange(const Lanes& lanes, f32 largest);  // floats of this size went from lane to lane
void race_whole_barrier();
void race_warp_sync(const Lanes& lanes);
void race_fence(Thread& self, u32 scope);
// `access`: the scope; kClusterScope or kBlockScope, or 0.
void race_release(Thread& self, SyncPoint& point, u32 access = 0);
void race_acquire(Thread& self, const SyncPoint& point, u32 access = 0);
// An arrival without a release, unless a fence stands before it: that the block has begun is known all the same.
void race_meet(Thread& self, SyncPoint& point);
bool race_has_begun(const Thread& self, u32 rank);  // whether this thread knows it
void race_block_ends();  // whether nobody else may still reach the block's shared memory

// --- counters (count.cpp) -------------------------------------------------------------------------------------------

void count_new_launch();
void count_access(Thread& self, bool shared, u64 address, u32 bytes, u32 access, Site site);
void count_end_of_block();

// --- what parts of the runtime know of a block ----------------------------------------------------------------------

// Each block in flight has states of its own; `begin()` makes one as new.
class BlockPart {
   public:
    explicit BlockPart(bool of_memory);
    virtual ~BlockPart() = default;
    virtual void* make() const = 0;
    virtual void use(void* state) = 0;
    virtual void begin() = 0;
    const bool of_memory;  // a visitor uses the host's

   protected:
    u32 index_;
};

// A block in flight: memory and fibers are used again by later blocks.
struct Polled {
    u32 kind, changes;
};
struct Slot {
    RunningBlock block;
    std::vector<Fiber> fibers;
    u8* stacks = nullptr;  // of all fibers, but for the first slot's
    u32 stack_count = 0;
    std::vector<void*> parts;
    bool busy = false, ended = false;  // a block that has ended lies here until its cluster has
    std::vector<Polled> stalled;  // where it polls, if that is all it can do
    u64 turn = 0;          // when it last ran
    std::shared_ptr<Cluster> cluster;
};

// Blocks that are in flight together, and meet at a barrier of their own.
struct Cluster {
    u32 first_serial = 0;          // of its blocks, by rank
    std::vector<Slot*> members;    // by rank
    u32 blocks = 0, threads = 0;   // that have not ended
    u32 missing = 0, phase = 0;    // threads that the barrier's phase waits for
    std::vector<Fiber*> waiters;
    SyncPoint arriving, completed;
};

inline u32 serial_of(const Thread& self) { return self.fiber->slot->block.block_serial; }  // of its block

template <class State>
class OfBlock : public BlockPart {
   public:
    explicit OfBlock(bool of_memory = false) : BlockPart(of_memory) {}
    State* operator->() const { return now_; }
    State& of(const Slot& slot) const { return *static_cast<State*>(slot.parts[index_]); }
    State& of(const Thread& self) const { return of(*self.fiber->slot); }
    void* make() const override { return new State(); }
    void use(void* state) override { now_ = static_cast<State*>(state); }
    void begin() override { now_->begin(); }

   private:
    State* now_ = nullptr;
};

// State of a block's shared memory.
template <class State>
class OfMemory : public OfBlock<State> {
   public:
    OfMemory() : OfBlock<State>(true) {}
};

}  // namespace sim
