// What a translated kernel sees of the simulated GPU: its thread, barriers, warp operations, and the module it describes.
//
// One OS thread runs one fiber at a time, one per CUDA thread. A fiber runs until it must wait, or has looped for long;
// nothing is preempted within an instruction, so atomics are plain code and a run repeats exactly from its seed.
//
// This header and those that it includes are compiled with every kernel: they stay free of the standard library, because
// the C++ compiler's time is most of what a simulated launch costs.
#pragma once
#include <stdint.h>
#include <string.h>

namespace sim {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using f32 = float;
using f64 = double;
using u128 = unsigned __int128;
using s128 = __int128;

struct Dim3 {
    u32 x, y, z;
};

constexpr u32 kWarp = 32;
constexpr u32 kAllLanes = 0xffffffffu;

// A "site" is one static instruction of a kernel: an index into the module's places.
using Site = u32;

struct Place {
    const char* file;
    u32 line;
    const char* caller_file;  // where the line was inlined, or ""
    u32 caller_line;
    const char* instruction;  // its opcode
    u32 value;                // a Value: what a store writes or a shuffle exchanges
    u64 bases;                // a bit for each parameter that its address may come from; 0: any
};

// What kind of number a register holds, as far as the instructions that made it say so.
enum class Value : u32 { Other, F32, Tf32, F64, F16, Bf16 };  // pairs of halves are halves

struct Fiber;

// What a kernel reads of itself and its block. The runtime fills it in before the thread starts.
struct Thread {
    Dim3 tid, ctaid, ntid, nctaid;
    Dim3 clusterid, nclusterid, cluster_ctaid, cluster_nctaid;
    u32 rank, cluster_blocks;  // in the cluster, x fastest
    bool explicit_cluster;
    u32 index;                // in the block, x fastest
    u32 lane, warp;
    u64 shared_window;        // generic address of shared address 0
    u32 dynamic_shared;       // bytes the launch asked for
    u32 total_shared;
    const struct LocalFrame* locals = nullptr;  // this thread's .local variables
    Site exit_site = 0;       // where it returned
    u32 loops = 0;            // jumps back
    bool watched = false;     // it loops for long: a load that sees the same again and again may wait for somebody
    Fiber* fiber = nullptr;
};

// The .local variables of a kernel or function, for as long as it runs; those of its callers lie behind.
struct LocalFrame {
    Thread& self;
    u64 begin, bytes;
    const LocalFrame* outer;

    LocalFrame(Thread& thread, void* memory, u64 size)
        : self(thread), begin(reinterpret_cast<u64>(memory)), bytes(size), outer(thread.locals) {
        self.locals = this;
    }
    ~LocalFrame() { self.locals = outer; }
    LocalFrame(const LocalFrame&) = delete;
    LocalFrame& operator=(const LocalFrame&) = delete;
};

// What a kernel's library says about itself; see translate.py, which writes it.
struct ModuleVariable {
    const char* name;
    void* address;
    u64 bytes;
    bool writable;
};

struct ModuleKernel {
    const char* symbol;
    void (*body)(Thread&, u8* const* parameters);
    u32 parameter_count;
    const u32* parameter_bytes;
    u32 static_shared;         // bytes, rounded up to where the dynamic shared memory begins
    Dim3 block_limit;          // .maxntid: 0 where not given
    Dim3 block_wanted;         // .reqntid
    Dim3 cluster_wanted;       // .reqnctapercluster: 0 where not given
    bool explicit_cluster;     // .explicitcluster
    u32 most_ranks;            // .maxclusterrank: 0 where not given
};

struct Module {
    const Place* places;
    u32 place_count;
    const ModuleVariable* variables;
    u32 variable_count;
    const ModuleKernel* kernels;
    u32 kernel_count;
    bool async_proxy;  // it may have instructions of that proxy
};

// --- control --------------------------------------------------------------------------------------------------------

[[noreturn]] void trap(Thread& self, Site site);
[[noreturn]] void assertion_failed(Thread& self, const void* message, const void* file, u32 line, Site site);
[[noreturn]] void division_by_zero(Thread& self, Site site);
[[noreturn]] void exit_thread(Thread& self, Site site);  // from within a function
// Calls by address: whether a function takes and answers so many values, and what is said where there is none.
bool is_call(Thread& self, u32 parameters, u32 results, u32 given, u32 wanted, Site site);
[[noreturn]] void no_function(Thread& self, u64 address, Site site);
void print(Thread& self, u64 format, u64 arguments, void* answer, Site site);  // printf
void heap_allocate(Thread& self, u64 bytes, void* answer, Site site);          // malloc
void heap_free(Thread& self, u64 address, Site site);
[[noreturn]] void bad_branch_index(Thread& self, u32 index, Site site);
u64 clock();
u64 global_timer();  // nanoseconds since 1970, going on as the clock does
constexpr u32 kMultiprocessors = 132;         // of an H100 SXM and an H200
u32 multiprocessor(const Thread& self);       // %smid: any of them, another one in each launch
u64 grid_number();                            // %gridid
u32 environment(u32 number);  // %envreg
// Shared memory of the system's own, behind what a block may have; cooperative groups of several warps meet there.
constexpr u32 kReservedShared = 252 * 1024, kReservedBytes = 1024;

// Every jump back is counted: a loop without end must let others run, and be found.
constexpr u32 kLongLoop = 4096;
void long_loop(Thread& self, Site site);
inline void jump_back(Thread& self, Site site) {
    if (__builtin_expect(++self.loops % kLongLoop == 0, 0)) long_loop(self, site);
}

// --- barriers (PTX ISA 9.7.13.1) ------------------------------------------------------------------------------------

constexpr u32 kWholeBlock = 0;  // in place of a barrier's thread count
void barrier_sync(Thread& self, u32 id, u32 threads, Site site);
void barrier_arrive(Thread& self, u32 id, u32 threads, Site site);
enum class Vote : u32 { All, Any, Uniform, Ballot };
u32 barrier_count(Thread& self, u32 id, u32 threads, bool value, Site site);  // bar.red.popc
bool barrier_vote(Thread& self, u32 id, u32 threads, bool value, Vote kind, Site site);
void fence(Thread& self, u32 scope);  // kBlockScope or kClusterScope (memory.hpp), or 0 for a wider one

// --- warp operations: the last lane to arrive does the work of all (warp.cpp) ---------------------------------------

void sync_warp(Thread& self, u32 mask, Site site);
enum class Shuffle : u32 { Up, Down, Butterfly, Index };
u32 shuffle(Thread& self, Shuffle mode, u32 value, u32 b, u32 c, u32 mask, bool* in_range, Site site);
u32 vote(Thread& self, Vote kind, bool value, u32 mask, Site site);
u32 match_any(Thread& self, u64 value, u32 mask, Site site);
u32 match_all(Thread& self, u64 value, u32 mask, bool* same, Site site);
enum class Reduce : u32 { Add, MinSigned, MaxSigned, MinUnsigned, MaxUnsigned, And, Or, Xor };
u32 reduce(Thread& self, Reduce kind, u32 value, u32 mask, Site site);
u32 elect(Thread& self, u32 mask, bool* elected, Site site);
u32 active_mask(Thread& self, Site site);

}  // namespace sim
