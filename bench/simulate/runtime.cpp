// Fibers, the scheduler of a block, barriers, and the launch: everything that decides who runs when.
#include "machine.hpp"

#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <memory>
#include <set>

namespace sim {

Machine machine;

namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kPage = 4096;
constexpr u32 kRing = 2048;  // a power of two above kMaxThreads
constexpr u32 kMaxReports = 20;
constexpr u64 kMostIdle = 1000000;     // polls, and what was woken between them, without any change: then they wait for ever
constexpr u64 kMostRestless = 4000000;  // the same without a thread that returned or saw what it waits for: what changes
                                        // leads nowhere
constexpr u32 kLongLoopWeight = 16;    // of a long loop's round, among them
constexpr u32 kPatience = 64;          // rounds of a long loop, before other blocks are let run
constexpr u32 kVainRounds = 4;         // of a block's threads, before other blocks are let run
// In all blocks in flight: a block of 256 for each multiprocessor of an H100. A card may have more; here each has a stack.
constexpr u32 kThreadsInFlight = kMultiprocessors * 256;
constexpr u32 kPreemptedBlocks = 4;    // that many begin before one that was taken off in the middle comes to its end

struct BarrierState {
    u32 arrived = 0, expected = 0;
    bool whole = false;
    std::vector<Fiber*> waiters;
    u32 votes = 0;  // bar.red: waiters whose predicate is true
    SyncPoint point;
};

struct Report {
    std::string kind, message;
    std::string key{};  // equal for what is reported once
};

struct SchedulerState {
    Fiber* ring[kRing];
    u32 head = 0, tail = 0;
    u32 round_end = 0;  // where the round of the last poll ends
    BarrierState barriers[kBarriers];
    u32 arrived = 0;  // by barrier, a bit: somebody has arrived there

    void begin() {
        head = tail = round_end = 0;
        each_lane(arrived, [&](u32 id) { barriers[id] = BarrierState(); });
        arrived = 0;
    }
};
OfBlock<SchedulerState> here;

// Changes of memory that others may poll for, by address.
constexpr u32 kChangeKinds = 4096;
u32 changes[kChangeKinds];
u32 kind_of(u64 address) { return static_cast<u32>(address / 8 * 0x9E3779B97F4A7C15ull >> 52); }

std::vector<std::unique_ptr<Slot>> slots;
Slot* running = nullptr;
Slot* reached = nullptr;  // whose shared memory the machine has: the running block's, but for a visit
u32 in_flight = 0;
u64 blocks_total = 0, blocks_started = 0;
enum class Left { Done, Stalled, Preempted, Asleep };
Left left_as = Left::Done;

std::vector<BlockPart*>& block_parts() {  // filled before main, in any order
    static std::vector<BlockPart*> all;
    return all;
}

void* main_stack_pointer = nullptr;
bool aborted = false;
std::vector<Report> reports, remarks;
std::set<std::string> report_keys, remark_keys;
pthread_t launching_thread;
u64 ticks = 0, began_ns = 0, grids = 0;
alignas(16) u32 grid_workspace[4];  // its size, and the barrier of a cooperative launch's blocks
f64 time_limit = 0, begun = 0;  // seconds; no limit where it is 0

f64 seconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<f64>(now.tv_sec) + static_cast<f64>(now.tv_nsec) * 1e-9;
}
constexpr size_t kMostPrinted = 64 * 1024;  // characters, in a launch
size_t printed = 0;
constexpr f64 kAgain = 10;  // times as long as before may a launch take that is run again

}  // namespace

// --- visits to the shared memory of other blocks --------------------------------------------------------------------

namespace {

void go_to(Slot& host) {
    if (reached == &host) return;
    static_cast<BlockMemory&>(reached->block) = machine;
    static_cast<BlockMemory&>(machine) = host.block;
    reached = &host;
    for (size_t i = 0; i < host.parts.size(); i++) {
        if (block_parts()[i]->of_memory) block_parts()[i]->use(host.parts[i]);
    }
}

}  // namespace

Visit::Visit(Slot& host) : before_(reached) {
    go_to(host);
    if (reached != running) machine.visited = true;
}

Visit::~Visit() { go_to(*before_); }

void memory_changed() {
    if (reached != running) reached->stalled.clear();
}

std::string whose_memory() {
    return machine.owner == machine.block_serial ? "" : " of " + block_name(machine.owner);
}

bool has_ended(const Slot& slot) { return slot.ended; }

BlockPart::BlockPart(bool of_memory) : of_memory(of_memory), index_(static_cast<u32>(block_parts().size())) {
    block_parts().push_back(this);
}

// --- reports --------------------------------------------------------------------------------------------------------

std::string text(const char* format, ...) {
    char buffer[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(buffer, sizeof buffer, format, arguments);
    va_end(arguments);
    return buffer;
}

std::string where(Site site) {
    if (!machine.module || site >= machine.module->place_count) return "an unknown line";
    const Place& place = machine.module->places[site];
    std::string caller = *place.caller_file ? text(" (inlined at %s:%u)", place.caller_file, place.caller_line) : "";
    return text("%s:%u", place.file, place.line) + caller;
}

std::string thread_name(u32 index) {
    const Dim3& size = machine.block_size;
    return text("thread (%u,%u,%u)", index % size.x, index / size.x % size.y, index / (size.x * size.y));
}

std::string who(const Thread& self) {
    return text("block (%u,%u,%u) ", self.ctaid.x, self.ctaid.y, self.ctaid.z) + thread_name(self.index);
}

bool same_place(Site a, Site b) {
    if (a == b) return true;
    const Place &p = machine.module->places[a], &q = machine.module->places[b];
    return p.line == q.line && p.caller_line == q.caller_line && !strcmp(p.file, q.file) &&
           !strcmp(p.caller_file, q.caller_file);
}

std::string block_name(u32 serial) {
    const Dim3& at = machine.blocks[serial - machine.first_block_serial];
    return text("block (%u,%u,%u)", at.x, at.y, at.z);
}

std::string memory_name(bool shared, u64 address) {
    if (shared) return text("shared memory byte %llu", static_cast<unsigned long long>(address)) + whose_memory();
    for (const Range& range : machine.ranges) {
        if (address - range.begin < range.bytes) {
            return text("`%s` byte %llu", range.name.c_str(), static_cast<unsigned long long>(address - range.begin));
        }
    }
    return "memory";
}

void remark(const char* kind, const std::string& key, const std::string& message) {
    std::string name = std::string(kind) + "\x1f" + key;
    if (remarks.size() < kMaxReports && remark_keys.insert(name).second) remarks.push_back({name, message});
}

void note(const char* kind, const std::string& key, const std::string& message) {
    if (reports.size() < kMaxReports && report_keys.insert(key).second) reports.push_back({kind, message, key});
}

// --- fibers: the context switch is written by hand, because the library's (swapcontext) makes a system call ---------

// Saves the callee-saved registers of the System V x86-64 ABI, swaps stacks, and restores. It ends in a jump and not in
// `ret`: the processor predicts `ret` from the call that it saw on the other stack, and is wrong each time.
extern "C" void sim_switch(void** save, void* to);
extern "C" void sim_fiber_start();
asm(R"(
.text
.hidden sim_switch
.globl sim_switch
.type sim_switch,@function
sim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rdx
    jmp *%rdx
.size sim_switch,.-sim_switch

.hidden sim_fiber_start
.globl sim_fiber_start
.type sim_fiber_start,@function
sim_fiber_start:
    xorl %ebp, %ebp
    andq $-16, %rsp
    call sim_fiber_main
    ud2
.size sim_fiber_start,.-sim_fiber_start
)");

namespace {

// Leave the current context for `next`, or for the launch's own where it is null.
__attribute__((noinline)) void jump(Fiber* next) {
    Fiber* from = machine.current;
    machine.current = next;
    sim_switch(from ? &from->stack_pointer : &main_stack_pointer, next ? next->stack_pointer : main_stack_pointer);
}

void make_ready(Fiber& fiber) {
    SchedulerState& its = here.of(*fiber.slot);
    fiber.state = State::Ready;
    its.ring[its.tail++ % kRing] = &fiber;
    if (fiber.slot != running) fiber.slot->stalled.clear();
}

Fiber* next_ready() {
    u32& head = here->head;
    if (head == here->tail) return nullptr;
    if (machine.seed) {
        u32 chosen = head + static_cast<u32>(random_number() % (here->tail - head));
        std::swap(here->ring[head % kRing], here->ring[chosen % kRing]);
    }
    return here->ring[head++ % kRing];
}

// Where a thread waits, in words; threads that wait alike are told of together.
std::string wait_of(const Fiber& fiber) {
    std::string message = fiber.waits_for;
    if (fiber.state == State::Ready) message = fiber.long_loops && !fiber.polling ? "loops" : "runs";
    if (fiber.state == State::Ready && fiber.polling) {
        u64 address = fiber.seen.address;
        bool generic = is_shared(const_cast<Thread&>(fiber.thread), address);
        bool shared = generic || address < machine.shared_bytes;
        message = "polls " + memory_name(shared, generic ? address - fiber.thread.shared_window : address);
    }
    if (fiber.state == State::Warp) message = "waits in " + message + text(" with mask 0x%08x", fiber.mask);
    return message + ", " + where(fiber.site);
}

// What the threads of the running block wait for: those that poll first, because they wait for somebody else.
std::string waits() {
    struct Group {
        std::string wait;
        u32 first, threads;
    };
    std::vector<Group> groups;
    for (u32 i = 0; i < machine.threads; i++) {
        const Fiber& fiber = machine.fibers[i];
        if (fiber.state == State::Done) continue;
        std::string wait = wait_of(fiber);
        auto same = std::find_if(groups.begin(), groups.end(), [&](const Group& g) { return g.wait == wait; });
        if (same != groups.end()) same->threads++;
        else groups.push_back({wait, i, 1});
    }
    auto rank = [](const Group& g) { return g.wait.rfind("polls", 0) == 0 ? 0 : g.wait.rfind("runs", 0) == 0 ? 2 : 1; };
    std::vector<const Group*> told;
    for (int wanted = 0; wanted < 3; wanted++) {
        // Who runs is on its way to where others wait.
        for (const Group& g : groups) {
            if (rank(g) == wanted && (wanted < 2 || told.empty())) told.push_back(&g);
        }
    }
    std::string message;
    for (size_t i = 0; i < told.size() && i < 6; i++) {
        std::string more = told[i]->threads > 1 ? text(" (and %u more threads)", told[i]->threads - 1) : "";
        message += (i ? "; " : "") + thread_name(told[i]->first) + " " + told[i]->wait + more;
    }
    return message + (told.size() > 6 ? "; …" : "");
}

void put_aside();
void take_up(Slot& slot);

// `others`: it is the blocks that wait for each other, so tell of some more of them.
std::string deadlock_text(bool others) {
    constexpr u32 kTold = 4;
    const Dim3& block = machine.block;
    std::string message = text("deadlock in block (%u,%u,%u): ", block.x, block.y, block.z) + waits();
    if (others && in_flight > 1) {
        Slot* last = running;
        put_aside();
        u32 told = 1;
        for (auto& slot : slots) {
            if (!slot->busy || slot->ended || slot.get() == last || told == kTold) continue;
            take_up(*slot);
            message += "; " + block_name(machine.block_serial) + ": " + waits();
            told++;
        }
        if (told < in_flight) message += text("; and %u more blocks", in_flight - told);
        take_up(*last);
    }
    if (blocks_started < blocks_total) {
        message += text(" (%u of %llu blocks are in flight here, %llu have not begun)", in_flight,
                        static_cast<unsigned long long>(blocks_total), static_cast<unsigned long long>(blocks_total - blocks_started));
    }
    return message;
}

[[noreturn]] void deadlock(bool others) { fail("deadlock", deadlock_text(others)); }

// What was woken since the last poll belongs to it: a poll in vain by one thread may be a round of the whole block.
void count_idle(u32 weight) {
    u64 units = weight + std::min(machine.wakes, kMaxThreads);
    machine.wakes = 0;
    machine.idle += units;
    machine.restless += units;
    if (machine.idle > kMostIdle || machine.restless > kMostRestless) deadlock(true);
}

void leave(Left how);

}  // namespace

void run_another() {
    Fiber* next = next_ready();
    if (!next && machine.active_requests) {
        settle_active_masks();
        next = next_ready();
    }
    if (!next && machine.live && machine.cluster->blocks > 1) return leave(Left::Asleep);  // others may wake it
    if (!next && machine.live) deadlock(false);
    if (next != machine.current) jump(next);
}

void fail(const char* kind, const std::string& message) {
    reports.insert(reports.begin(), {kind, message});  // what ended the launch comes first
    aborted = true;
    jump(nullptr);
    abort();  // not reached: nobody resumes an abandoned fiber
}

u64 random_number() {  // xorshift64
    u64& x = machine.random_state;
    x ^= x << 13;
    x ^= x >> 7;
    return x ^= x << 17;
}

void begin_wait(State state, const char* waits_for, Site site) {
    Fiber& fiber = *machine.current;
    fiber.state = state;
    fiber.waits_for = waits_for;
    fiber.site = site;
}

void wake(Fiber& fiber) {
    make_ready(fiber);
    machine.wakes++;
}

void changed(u64 address) {
    stirred();
    changes[kind_of(address)]++;
}

// The end of a launch's time. Looked at where a launch that goes on for ever must come by: jumps back, polls, barriers.
void look_at_clock(Site site) {
    constexpr u32 kEvery = 64;
    static u32 calls = 0;
    if (!time_limit || ++calls % kEvery) return;
    if (seconds() - begun < time_limit) return;
    fail("timeout", text("the launch has run for %.3g seconds, its limit, and is in block (%u,%u,%u), ", time_limit, machine.block.x,
                         machine.block.y, machine.block.z) + where(site));
}

namespace {

// Give up the processor, to a thread of another block where there is one.
void leave(Left how) {
    left_as = how;
    jump(nullptr);
}

}  // namespace

void yield_to_others(Site site) {
    Fiber& fiber = *machine.current;
    look_at_clock(site);
    fiber.site = site;
    fiber.polling = true;
    count_idle(1);
    make_ready(fiber);
    // Only pollers are ready: those who asked which lanes are active have waited long enough.
    if (here->head >= here->round_end) machine.rounds++, here->round_end = here->tail;
    const bool in_vain = machine.rounds > kVainRounds;
    if (in_vain && machine.active_requests) settle_active_masks();
    else if (in_vain && others_could_run()) return leave(Left::Stalled);
    Fiber* next = next_ready();
    if (next != &fiber) jump(next);
}

void long_loop(Thread& self, Site site) {
    Fiber& fiber = *self.fiber;
    look_at_clock(site);
    self.watched = true;
    fiber.site = site;
    fiber.polling = false;
    count_idle(kLongLoopWeight);
    make_ready(fiber);
    if (++fiber.long_loops % kPatience == 0 && others_could_run()) return leave(Left::Stalled);
    Fiber* next = next_ready();
    if (next != &fiber) jump(next);
}

bool others_could_run() {
    return in_flight > 1 || (blocks_started < blocks_total && in_flight < kThreadsInFlight / machine.threads);
}

void preempt() {
    if (in_flight == 1 && blocks_started == blocks_total) return;
    make_ready(*machine.current);
    leave(Left::Preempted);
}

// --- barriers -------------------------------------------------------------------------------------------------------

namespace {

// A block's barrier is for those threads that have not returned: CUDA's guide says so of Volta and later. It is told,
// because what such a thread should have brought to the barrier is missing without a word.
void exited_before_barrier(const Fiber& exited, const Fiber& waiting) {
    remark("returned early", where(waiting.site),
           who(exited.thread) + " has returned, " + where(exited.thread.exit_site) + ", before __syncthreads() of the others, " +
               where(waiting.site) + ": since Volta it \"will not succeed until reached by all non-exited threads in the block\"" +
               " (CUDA C++ Programming Guide, compute capability 7.x), so they do not wait for it");
}

[[noreturn]] void bad_barrier(const Thread& self, const std::string& what, Site site) {
    fail("barrier", what + ", " + where(site) + ", " + who(self));
}

// What must hold where all threads of the block meet: they come to one place.
void check_whole(const Thread& self, const BarrierState& barrier) {
    if (!barrier.waiters.empty()) {
        const Fiber& other = *barrier.waiters[0];  // stands for all: each was compared with it when it came
        if (!same_place(other.site, self.fiber->site)) {
            fail("divergent barrier", "divergent barrier: " + who(other.thread) + " waits at " + where(other.site) +
                                          ", but " + thread_name(self.index) + " at " + where(self.fiber->site));
        }
    }
    if (!machine.exited || !barrier.waiters.empty()) return;
    for (u32 i = 0; i < machine.threads; i++) {
        if (machine.fibers[i].state == State::Done) return exited_before_barrier(machine.fibers[i], *self.fiber);
    }
}

BarrierState& arrive(Thread& self, u32 id, u32 threads, bool waits, Site site) {
    if (id >= kBarriers) bad_barrier(self, text("barrier %u does not exist (0 to 15)", id), site);
    if (threads % kWarp) bad_barrier(self, text("a barrier for %u threads, no multiple of 32", threads), site);
    look_at_clock(site);
    BarrierState& barrier = here->barriers[id];
    bool whole = threads == kWholeBlock;
    u32 expected = whole ? machine.threads : threads;
    if (!barrier.arrived) {
        barrier.expected = expected;
        barrier.whole = whole;
    } else if (barrier.expected != expected) {
        bad_barrier(self, text("barrier %u is for %u threads here, and for %u where others wait", id, expected, barrier.expected), site);
    }
    self.fiber->site = site;
    if (whole && waits) check_whole(self, barrier);
    barrier.arrived++;
    here->arrived |= 1u << id;
    if (!whole && machine.races) race_release(self, barrier.point);
    return barrier;
}

bool complete(const BarrierState& barrier) {
    return barrier.arrived == (barrier.whole ? machine.live : barrier.expected);
}

void open(BarrierState& barrier) {
    BarrierState opened = std::move(barrier);
    barrier = BarrierState();
    if (machine.races && opened.whole) race_whole_barrier();
    for (Fiber* fiber : opened.waiters) {
        if (machine.races && !opened.whole) race_acquire(fiber->thread, opened.point);
        fiber->votes = opened.votes;
        fiber->voters = static_cast<u32>(opened.waiters.size());
        wake(*fiber);
    }
}

void sync(Thread& self, u32 id, u32 threads, bool value, Site site) {
    BarrierState& barrier = arrive(self, id, threads, true, site);
    barrier.votes += value;
    barrier.waiters.push_back(self.fiber);
    begin_wait(State::Barrier, "waits at a barrier", site);
    if (complete(barrier)) open(barrier);
    run_another();
}

}  // namespace

void barrier_sync(Thread& self, u32 id, u32 threads, Site site) { sync(self, id, threads, false, site); }

void barrier_arrive(Thread& self, u32 id, u32 threads, Site site) {
    BarrierState& barrier = arrive(self, id, threads, false, site);
    if (complete(barrier)) open(barrier);
}

u32 barrier_count(Thread& self, u32 id, u32 threads, bool value, Site site) {
    sync(self, id, threads, value, site);
    return self.fiber->votes;
}

bool barrier_vote(Thread& self, u32 id, u32 threads, bool value, Vote kind, Site site) {
    sync(self, id, threads, value, site);
    return kind == Vote::All ? self.fiber->votes == self.fiber->voters : self.fiber->votes > 0;
}

void fence(Thread& self, u32 scope) {
    if (machine.races) race_fence(self, scope);
}

// --- what ends a thread ---------------------------------------------------------------------------------------------

void trap(Thread& self, Site site) { fail("trap", "trap, " + where(site) + ", " + who(self)); }

void assertion_failed(Thread& self, const void* message, const void* file, u32 line, Site site) {
    const char* path = static_cast<const char*>(file);
    const char* slash = path ? strrchr(path, '/') : nullptr;
    std::string name = path ? text("%s:%u", slash ? slash + 1 : path, line) : where(site);
    fail("assertion", text("assertion `%s` failed, ", message ? static_cast<const char*>(message) : "?") + name + ", " + who(self));
}

void division_by_zero(Thread& self, Site site) {
    fail("division by zero", "integer division by zero, " + where(site) + ", " + who(self));
}

void bad_branch_index(Thread& self, u32 index, Site site) {
    fail("branch", text("branch index %u is outside of its list, ", index) + where(site) + ", " + who(self));
}

bool is_call(Thread& self, u32 parameters, u32 results, u32 given, u32 wanted, Site site) {
    if (parameters == given && results == wanted) return true;
    fail("call", text("calls a function of %u parameters and %u results by a pointer to one of %u and %u, ", parameters, results,
                      given, wanted) + where(site) + ", " + who(self));
}

void no_function(Thread& self, u64 address, Site site) {
    fail("call", text("calls address 0x%llx, where no function of this kernel is, ", static_cast<unsigned long long>(address)) +
                     where(site) + ", " + who(self));
}

bool in_own_stack(const Thread& self, u64 address) {
    return address - reinterpret_cast<u64>(self.fiber->stack) < kStackBytes;
}

// printf: what it was given lies in a buffer, each value at a multiple of its size; floats are doubles.
void print(Thread& self, u64 format, u64 arguments, void* answer, Site site) {
    const std::string given = read_text(self, format, site);
    std::string line;
    u32 values = 0;
    u64 at = arguments;
    auto take = [&](u32 bytes) {
        at = (at + bytes - 1) / bytes * bytes;
        u64 value = 0;
        memcpy(&value, reach_generic(self, at, bytes, kRead, site), bytes);
        at += bytes;
        values++;
        return value;
    };
    for (size_t i = 0; i < given.size(); i++) {
        if (given[i] != '%') {
            line += given[i];
            continue;
        }
        std::string part = "%";
        bool is_long = false;
        for (i++; i < given.size() && strchr("-+ #0123456789.*lhzjt", given[i]); i++) {
            if (given[i] == '*') part += std::to_string(static_cast<s32>(take(4)));
            else if (!strchr("lhzjt", given[i])) part += given[i];
            else is_long |= given[i] != 'h';
        }
        const char kind = i < given.size() ? given[i] : '%';
        if (part.size() > 16) part = "%";
        if (strchr("fFeEgGaA", kind)) {
            u64 bits = take(8);
            f64 value;
            memcpy(&value, &bits, sizeof value);
            line += text((part + kind).c_str(), value);
        } else if (kind == 's') {
            line += text((part + "s").c_str(), read_text(self, take(8), site).c_str());
        } else if (kind == 'p') {
            line += text("0x%llx", static_cast<unsigned long long>(take(8)));
        } else if (kind == 'c') {
            line += static_cast<char>(take(4));
        } else if (strchr("diouxX", kind)) {
            u64 value = take(is_long ? 8 : 4);
            if (!is_long && strchr("di", kind)) value = static_cast<u64>(static_cast<s64>(static_cast<s32>(value)));
            line += text((part + "ll" + kind).c_str(), static_cast<unsigned long long>(value));
        } else {
            line += kind;
        }
    }
    if (printed < kMostPrinted) fputs(line.c_str(), stderr);  // as far as the launch's share goes; stdout is the caller's
    printed += line.size();
    s32 told = static_cast<s32>(values);
    memcpy(answer, &told, sizeof told);
}

u32 environment(u32 number) {
    const u64 workspace = machine.cooperative ? reinterpret_cast<u64>(grid_workspace) : 0;
    return number == 1 ? static_cast<u32>(workspace >> 32) : number == 2 ? static_cast<u32>(workspace) : 0;
}

u64 clock() { return ticks += 64; }

u64 global_timer() { return began_ns + clock(); }

u32 multiprocessor(const Thread& self) {
    u64 block = (static_cast<u64>(self.ctaid.z) * self.nctaid.y + self.ctaid.y) * self.nctaid.x + self.ctaid.x;
    return static_cast<u32>((block + machine.seed * 37) % kMultiprocessors);
}

u64 grid_number() { return grids; }

namespace {

[[noreturn]] void end_of_thread(Fiber& fiber) {
    fiber.open_copies.clear();  // a copy that nobody waited for never lands
    fiber.copy_groups.clear();
    fiber.state = State::Done;
    machine.live--;
    machine.exited++;
    machine.restless = 0;
    stirred();
    Warp& warp = machine.warps[fiber.thread.warp];
    warp.live &= ~(1u << fiber.thread.lane);
    cluster_lost_thread(fiber);
    each_lane(here->arrived, [&](u32 id) {
        BarrierState& barrier = here->barriers[id];
        if (!barrier.whole || barrier.waiters.empty()) return;
        exited_before_barrier(fiber, *barrier.waiters[0]);
        if (complete(barrier)) open(barrier);
    });
    each_lane(warp.waiting, [&](u32 lane) {
        if (warp.waiting >> lane & 1) try_operation(warp, warp.fibers[lane].mask);
    });
    run_another();
    abort();  // not reached: nobody resumes a thread that is done
}

}  // namespace

void exit_thread(Thread& self, Site site) {
    self.exit_site = site;
    end_of_thread(*self.fiber);
}

extern "C" __attribute__((used, visibility("hidden"))) void sim_fiber_main() {
    Fiber& fiber = *machine.current;
    machine.kernel->body(fiber.thread, machine.parameters);
    end_of_thread(fiber);
}

// --- blocks and launches --------------------------------------------------------------------------------------------

namespace {

u8* map_stacks(size_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? nullptr : static_cast<u8*>(memory);
}

// The first slot's stacks have a guard page each, which finds frames that are too large. All blocks have the same frames,
// so the others do without: the system has a limit on the number of mappings. False where there is no memory.
bool make_fibers(Slot& slot, u32 threads) {
    if (slot.fibers.size() < threads) slot.fibers.resize(threads);
    if (&slot == slots[0].get()) {
        for (u32 i = 0; i < threads; i++) {
            Fiber& fiber = slot.fibers[i];
            if (fiber.stack) continue;
            u8* memory = map_stacks(kStackBytes + kPage);
            if (!memory) abort();
            mprotect(memory, kPage, PROT_NONE);
            fiber.stack = memory + kPage;
        }
        return true;
    }
    if (slot.stack_count >= threads) return true;
    if (slot.stacks) munmap(slot.stacks, slot.stack_count * kStackBytes);
    slot.stacks = map_stacks(threads * kStackBytes);
    slot.stack_count = slot.stacks ? threads : 0;
    for (u32 i = 0; i < slot.stack_count; i++) slot.fibers[i].stack = slot.stacks + i * kStackBytes;
    return slot.stacks;
}

// A slot that no block has, or null where there is no memory for more.
Slot* free_slot(u32 threads) {
    for (auto& slot : slots) {
        if (!slot->busy) return make_fibers(*slot, threads) ? slot.get() : nullptr;
    }
    slots.push_back(std::make_unique<Slot>());
    Slot& slot = *slots.back();
    return make_fibers(slot, threads) ? &slot : nullptr;
}

void put_aside() { running->block = machine; }

void take_up(Slot& slot) {
    running = reached = &slot;
    static_cast<RunningBlock&>(machine) = slot.block;
    for (size_t i = 0; i < slot.parts.size(); i++) block_parts()[i]->use(slot.parts[i]);
}

void start_thread(u32 index) {
    Fiber& fiber = machine.fibers[index];
    const Dim3& size = machine.block_size;
    Thread& thread = fiber.thread;
    thread.tid = {index % size.x, index / size.x % size.y, index / (size.x * size.y)};
    thread.ctaid = machine.block;
    thread.ntid = size;
    thread.nctaid = machine.grid;
    const Dim3 &grid = machine.grid, &cluster = machine.cluster_size, &at = machine.block;
    thread.clusterid = {at.x / cluster.x, at.y / cluster.y, at.z / cluster.z};
    thread.nclusterid = {grid.x / cluster.x, grid.y / cluster.y, grid.z / cluster.z};
    thread.cluster_ctaid = {at.x % cluster.x, at.y % cluster.y, at.z % cluster.z};
    thread.cluster_nctaid = cluster;
    thread.rank = machine.rank;
    thread.cluster_blocks = machine.cluster_blocks;
    thread.explicit_cluster = machine.explicit_cluster;
    thread.index = index;
    thread.lane = index % kWarp;
    thread.warp = index / kWarp;
    thread.shared_window = reinterpret_cast<u64>(machine.arena);
    thread.dynamic_shared = machine.dynamic_shared;
    thread.total_shared = machine.shared_bytes;
    thread.locals = nullptr;
    thread.exit_site = 0;
    thread.loops = 0;
    thread.watched = false;
    thread.fiber = &fiber;
    fiber.slot = running;
    fiber.met_cluster = false;
    fiber.cluster_arrivals = fiber.cluster_waits = 0;
    fiber.open_copies.clear();
    fiber.copy_groups.clear();
    std::fill(fiber.polls, fiber.polls + kPolls, Poll());
    fiber.seen = Poll();
    fiber.polling = false;
    fiber.long_loops = 0;
    // Stacks begin at different places in their pages, or all of them would compete for the same lines of the cache.
    u8* top = fiber.stack + kStackBytes - 64 - index * 192 % kPage;
    void** stack = reinterpret_cast<void**>(reinterpret_cast<u64>(top) & ~63ull);
    *--stack = reinterpret_cast<void*>(sim_fiber_start);
    for (int i = 0; i < 6; i++) *--stack = nullptr;
    fiber.stack_pointer = stack;
    Warp& warp = machine.warps[thread.warp];
    warp.existing |= 1u << thread.lane;
    make_ready(fiber);
}

void begin_block(Slot& slot, Dim3 at, u32 rank) {
    static u64 begins = 0;
    slot.ended = false;
    slot.stalled.clear();
    slot.turn = begins++;  // those of a cluster by rank
    slot.block.fibers = slot.fibers.data();
    take_up(slot);
    in_flight++;
    blocks_started++;
    machine.block = at;
    machine.cluster = slot.cluster.get();
    machine.rank = rank;
    machine.block_serial = machine.owner = ++machine.last_serial;
    machine.visited = false;
    machine.blocks.push_back(at);
    machine.live = machine.threads;
    machine.exited = machine.active_requests = 0;
    for (u32 w = 0; w < kMaxWarps; w++) machine.warps[w] = Warp{&machine.fibers[w * kWarp], 0, 0, 0, false};
    new_block_memory();
    for (BlockPart* part : block_parts()) part->begin();
    for (u32 i = 0; i < machine.threads; i++) start_thread(i);
    for (Warp& warp : machine.warps) warp.live = warp.existing;
    machine.restless = 0;
    stirred();
    put_aside();
}

// The blocks of a cluster, whose first one is at `at`, in slots of their own; false where there is no memory for all.
bool begin_cluster(Dim3 at) {
    auto cluster = std::make_shared<Cluster>();
    for (u32 rank = 0; rank < machine.cluster_blocks; rank++) {
        Slot* slot = free_slot(machine.threads);
        if (!slot) {
            for (Slot* taken : cluster->members) taken->busy = false, taken->cluster.reset();
            return false;
        }
        slot->busy = true;
        slot->cluster = cluster;
        // More of them may have come since with a library of the runtime's.
        for (size_t i = slot->parts.size(); i < block_parts().size(); i++) slot->parts.push_back(block_parts()[i]->make());
        cluster->members.push_back(slot);
    }
    const Dim3& size = machine.cluster_size;
    cluster->first_serial = machine.last_serial + 1;
    cluster->blocks = machine.cluster_blocks;
    cluster->threads = cluster->missing = machine.cluster_blocks * machine.threads;
    for (u32 rank = 0; rank < machine.cluster_blocks; rank++) {
        const Dim3 inside{rank % size.x, rank / size.x % size.y, rank / (size.x * size.y)};
        begin_block(*cluster->members[rank], {at.x + inside.x, at.y + inside.y, at.z + inside.z}, rank);
    }
    return true;
}

// The running block has ended. Its memory and fibers may be used again when its whole cluster has.
void end_block() {
    if (machine.races) races_end_of_block();
    if (machine.counting) count_end_of_block();
    cluster_ended_block();
    in_flight--;
    running->ended = true;
    put_aside();
    if (machine.cluster->blocks) return;
    const std::shared_ptr<Cluster> cluster = running->cluster;
    for (Slot* slot : cluster->members) slot->busy = false, slot->cluster.reset();
}

std::vector<Polled> where_polled() {
    std::vector<Polled> found;
    for (u32 i = 0; i < machine.threads; i++) {
        const Fiber& fiber = machine.fibers[i];
        if (fiber.state != State::Ready) continue;
        u32 kind = fiber.polling ? kind_of(fiber.seen.address) : 0;
        if (std::any_of(found.begin(), found.end(), [&](const Polled& p) { return p.kind == kind; })) continue;
        found.push_back({kind, changes[kind]});
    }
    return found;
}

bool waits_in_vain(const Slot& slot) {
    return !slot.stalled.empty() &&
           std::all_of(slot.stalled.begin(), slot.stalled.end(), [](const Polled& p) { return p.changes == changes[p.kind]; });
}

// Run a block until it ends, or lets others run.
void run_block(Slot& slot) {
    static u64 turns = 1ull << 32;  // behind those that have not run
    if (running != &slot) take_up(slot);
    slot.turn = ++turns;
    machine.rounds = 0;
    here->round_end = here->head;
    machine.current = nullptr;
    left_as = Left::Done;
    jump(next_ready());
    machine.current = nullptr;
    if (aborted) return;
    slot.stalled = left_as == Left::Stalled ? where_polled() : std::vector<Polled>();
    if (left_as != Left::Done) return put_aside();
    end_block();
}

// A crash in translated code becomes a report; one anywhere else stays what it is.
void on_crash(int number, siginfo_t* info, void*) {
    if (!pthread_equal(pthread_self(), launching_thread) || !machine.current) {
        signal(number, SIG_DFL);
        return;
    }
    u8* address = static_cast<u8*>(info->si_addr);
    std::string what = text("signal %d", number);
    u8* stack = machine.current->stack;
    if (address >= stack - kPage && address < stack) {  // kernels touch every page of a large frame, so none is jumped over
        what = text("a thread's local memory and registers need more than %zu KiB", kStackBytes / 1024);
    }
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
    reports.insert(reports.begin(), {"crash", "crash: " + what + ", " + who(machine.current->thread)});
    aborted = true;
    void* ignored;
    machine.current = nullptr;
    sim_switch(&ignored, main_stack_pointer);
}

// Has crash signals come to on_crash, on a stack of its own, as long as it lives.
class CrashGuard {
   public:
    CrashGuard() {
        static u8 memory[64 * 1024];
        stack_t stack{};
        stack.ss_sp = memory;
        stack.ss_size = sizeof memory;
        sigaltstack(&stack, &old_stack_);
        struct sigaction action {};
        action.sa_sigaction = on_crash;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (int i = 0; i < kSignals; i++) sigaction(kNumbers[i], &action, &old_[i]);
    }
    ~CrashGuard() {
        for (int i = 0; i < kSignals; i++) sigaction(kNumbers[i], &old_[i], nullptr);
        sigaltstack(&old_stack_, nullptr);
    }

   private:
    static constexpr int kSignals = 4;
    static constexpr int kNumbers[kSignals] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    struct sigaction old_[kSignals];
    stack_t old_stack_;
};

constexpr u32 kPortableRanks = 8;

std::string size_text(const Dim3& size) { return text("(%u,%u,%u)", size.x, size.y, size.z); }

std::string bad_cluster() {
    const ModuleKernel& kernel = *machine.kernel;
    const Dim3 &size = machine.cluster_size, &wanted = kernel.cluster_wanted, &grid = machine.grid;
    const u64 blocks = static_cast<u64>(size.x) * size.y * size.z;
    if (wanted.x && (wanted.x != size.x || wanted.y != size.y || wanted.z != size.z)) {
        return "a cluster of " + size_text(size) + " blocks, but the kernel's __cluster_dims__ are " + size_text(wanted);
    }
    if (kernel.explicit_cluster && !wanted.x && !machine.explicit_cluster) {
        return "the kernel is for clusters of a size that the launch says, and this one says none";
    }
    const u32 most = machine.any_cluster ? kMaxRanks : kPortableRanks;
    if (!blocks || blocks > most) {
        return "a cluster of " + size_text(size) + text(" blocks; a cluster has 1 to %u", most) +
               (most < kMaxRanks ? ", and up to 16 where the kernel is allowed a size that not every GPU has" : "");
    }
    if (kernel.most_ranks && blocks > kernel.most_ranks) {
        return "a cluster of " + size_text(size) + text(" blocks, but the kernel's .maxclusterrank is %u", kernel.most_ranks);
    }
    if (grid.x % size.x || grid.y % size.y || grid.z % size.z) {
        return "a grid of " + size_text(grid) + " blocks is no multiple of the cluster's " + size_text(size);
    }
    return "";
}

std::string bad_configuration() {
    const ModuleKernel& kernel = *machine.kernel;
    const Dim3 &block = machine.block_size, &grid = machine.grid, &limit = kernel.block_limit, &wanted = kernel.block_wanted;
    u64 threads = static_cast<u64>(block.x) * block.y * block.z;
    if (!threads || threads > kMaxThreads || block.z > 64) {
        return text("a block of (%u,%u,%u) threads; a block has 1 to 1024, at most 64 in z", block.x, block.y, block.z);
    }
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
        return text("a grid of (%u,%u,%u) blocks; a grid has at least 1 along each axis, and at most 2147483647, 65535 and 65535",
                    grid.x, grid.y, grid.z);
    }
    if (limit.x && threads > static_cast<u64>(limit.x) * limit.y * limit.z) {
        return text("a block of %llu threads, but the kernel's __launch_bounds__ allow %u",
                    static_cast<unsigned long long>(threads), limit.x * limit.y * limit.z);
    }
    if (wanted.x && (wanted.x != block.x || wanted.y != block.y || wanted.z != block.z)) {
        return text("a block of (%u,%u,%u) threads, but the kernel wants (%u,%u,%u)", block.x, block.y, block.z, wanted.x,
                    wanted.y, wanted.z);
    }
    std::string problem = bad_cluster();
    if (!problem.empty()) return problem;
    if (machine.cooperative) {
        const u32 warps = (static_cast<u32>(threads) + kWarp - 1) / kWarp, shared = machine.shared_bytes + 1024;
        const u64 fit = std::min({64 / warps, 32u, 228 * 1024 / shared}) * static_cast<u64>(kMultiprocessors), all = static_cast<u64>(grid.x) * grid.y * grid.z;
        const u64 here = kThreadsInFlight / static_cast<u32>(threads);
        if (all > std::min(fit, here)) {
            return text("a cooperative launch of %llu blocks; at most %llu are in flight together%s", static_cast<unsigned long long>(all),
                        static_cast<unsigned long long>(std::min(fit, here)), fit > here ? " here" : "");
        }
    }
    if (kernel.static_shared > kStaticSharedLimit) {
        return text("%u bytes of static shared memory; ptxas takes at most %u, what is more must be dynamic", kernel.static_shared,
                    kStaticSharedLimit);
    }
    if (machine.shared_bytes > kSharedLimit) {
        return text("%u bytes of shared memory; a block has at most %u", machine.shared_bytes, kSharedLimit);
    }
    return "";
}

// The block to run next. One that polls is not asked again before something changed; as long as some wait, those that
// have not begun do so in their order, because a block may count on the ones before it being on their way.
template <class Begin>
Slot* choose(Begin begin_another) {
    std::vector<Slot*> able, stalled;
    for (auto& slot : slots) {
        if (!slot->busy || slot->ended) continue;
        const SchedulerState& its = here.of(*slot);
        if (its.head == its.tail) continue;  // all its threads wait for other blocks of the cluster
        (waits_in_vain(*slot) ? stalled : able).push_back(slot.get());
    }
    auto oldest = [](const std::vector<Slot*>& of) {
        return *std::min_element(of.begin(), of.end(), [](Slot* a, Slot* b) { return a->turn < b->turn; });
    };
    const bool more = blocks_started < blocks_total, preempted = left_as == Left::Preempted;
    if (preempted && more && in_flight < kPreemptedBlocks && random_number() % 2) {
        if (Slot* slot = begin_another(false)) return slot;
    }
    const bool by_chance = preempted || (machine.cluster_blocks > 1 && machine.seed);
    if (!able.empty()) return by_chance ? able[random_number() % able.size()] : oldest(able);
    if (more && in_flight + machine.cluster_blocks <= kThreadsInFlight / machine.threads) {
        if (Slot* slot = begin_another(!stalled.empty())) return slot;
    }
    return stalled.empty() ? nullptr : oldest(stalled);
}

// No thread in flight can go on: each waits for one of another block of its cluster, or of its own.
void all_asleep() {
    auto waiting = std::find_if(slots.begin(), slots.end(), [](auto& slot) { return slot->busy && !slot->ended; });
    take_up(**waiting);
    reports.insert(reports.begin(), {"deadlock", deadlock_text(true)});
    aborted = true;
}

void run_blocks() {
    const Dim3 &all = machine.grid, &size = machine.cluster_size;
    const Dim3 grid{all.x / size.x, all.y / size.y, all.z / size.z};  // of clusters
    u64 blocks = static_cast<u64>(grid.x) * grid.y * grid.z;
    std::vector<u32> order(machine.seed ? blocks : 0);
    for (u64 i = 0; i < order.size(); i++) {
        order[i] = static_cast<u32>(i);
        std::swap(order[i], order[random_number() % (i + 1)]);
    }
    std::vector<bool> begun(blocks);
    u64 next = 0, lowest = 0;  // in this order, and by number
    auto begin_another = [&](bool in_order) -> Slot* {
        while (lowest < blocks && begun[lowest]) lowest++;
        while (next < blocks && begun[machine.seed ? order[next] : next]) next++;
        u64 block = in_order || !machine.seed ? lowest : order[next];
        const Dim3 at{static_cast<u32>(block % grid.x), static_cast<u32>(block / grid.x % grid.y), static_cast<u32>(block / grid.x / grid.y)};
        if (!begin_cluster({at.x * size.x, at.y * size.y, at.z * size.z})) return nullptr;
        begun[block] = true;
        const std::vector<Slot*>& members = running->cluster->members;
        return members[machine.seed ? random_number() % members.size() : 0];
    };
    left_as = Left::Done;
    in_flight = 0;
    blocks_total = blocks * machine.cluster_blocks;
    blocks_started = 0;
    while (!aborted && (in_flight || blocks_started < blocks_total)) {
        if (Slot* slot = choose(begin_another)) run_block(*slot);
        else if (in_flight) all_asleep();
        else abort();  // there was memory for the first
    }
    for (auto& slot : slots) slot->busy = false, slot->cluster.reset();
    for (size_t i = 1; i < slots.size(); i++) {  // a launch with many blocks in flight is seldom followed by another
        if (slots[i]->stacks) madvise(slots[i]->stacks, slots[i]->stack_count * kStackBytes, MADV_DONTNEED);
    }
}

const char* as_text(const std::vector<Report>& told) {
    static std::string all;
    all.clear();
    for (const Report& report : told) all += report.kind + "\t" + report.message + "\x1e";
    return all.c_str();
}

}  // namespace

// --- what Python calls (launcher.py) --------------------------------------------------------------------------------

struct PassedRange {
    u64 begin, bytes;
    const char* name;
    u32 writable, parameter;
    u64 pitch, row;
};

struct PassedLaunch {
    const Module* module;
    const char* symbol;
    u32 grid[3], block[3];
    u32 dynamic_shared, races, counting, argument_count, range_count, cooperative;
    u32 cluster[3], any_cluster;  // zeros: as the kernel has it
    u64 seed;
    f64 time_limit;
    u8** arguments;
    const u32* argument_bytes;
    const PassedRange* ranges;
};

namespace {

void set_up(const PassedLaunch& launch) {
    const ModuleKernel& kernel = *machine.kernel;
    machine.grid = {launch.grid[0], launch.grid[1], launch.grid[2]};
    machine.block_size = {launch.block[0], launch.block[1], launch.block[2]};
    machine.threads = launch.block[0] * launch.block[1] * launch.block[2];
    machine.dynamic_shared = launch.dynamic_shared;
    machine.shared_bytes = kernel.static_shared + launch.dynamic_shared;
    machine.parameters = launch.arguments;
    machine.seed = launch.seed;
    machine.random_state = launch.seed * 0x9E3779B97F4A7C15ull + 0x1234567;
    machine.races = launch.races;
    machine.counting = launch.counting;
    machine.cooperative = launch.cooperative;
    const bool told = launch.cluster[0];
    const Dim3& wanted = kernel.cluster_wanted;
    machine.cluster_size = told ? Dim3{launch.cluster[0], launch.cluster[1], launch.cluster[2]} : wanted.x ? wanted : Dim3{1, 1, 1};
    machine.cluster_blocks = machine.cluster_size.x * machine.cluster_size.y * machine.cluster_size.z;
    machine.explicit_cluster = told || wanted.x;
    machine.any_cluster = launch.any_cluster;
    time_limit = launch.time_limit;
    begun = seconds();
    timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    began_ns = static_cast<u64>(now.tv_sec) * 1000000000 + static_cast<u64>(now.tv_nsec);
    grids++;
    machine.current = nullptr;
    machine.ranges.clear();
    machine.pointers = 0;
    for (u32 i = 0; i < launch.range_count; i++) {
        const PassedRange& r = launch.ranges[i];
        const u64 parameter = r.parameter < 64 ? 1ull << r.parameter : 0;
        machine.ranges.push_back({r.begin, r.bytes, r.name, r.writable != 0, true, true, parameter, r.pitch, r.row});
        machine.pointers |= parameter;
    }
    for (u32 i = 0; i < launch.module->variable_count; i++) {
        const ModuleVariable& v = launch.module->variables[i];
        machine.ranges.push_back({reinterpret_cast<u64>(v.address), v.bytes, v.name, v.writable, v.writable, v.writable});
    }
    for (u32 i = 0; i < kernel.parameter_count; i++) {
        std::string name = text("parameter %u", i);
        machine.ranges.push_back({reinterpret_cast<u64>(launch.arguments[i]), kernel.parameter_bytes[i], name, false, false, false});
    }
    if (machine.cooperative) {
        memset(grid_workspace, 0, sizeof grid_workspace);
        grid_workspace[0] = sizeof grid_workspace;
        machine.ranges.push_back({reinterpret_cast<u64>(grid_workspace), sizeof grid_workspace, "the grid's barrier", true, true, true});
    }
    // What no argument may write cannot race; overlapping views of one buffer are looked at together.
    for (Range& range : machine.ranges) {
        range.tracked = range.writable;
        for (const Range& other : machine.ranges) {
            range.tracked |= other.writable && other.begin < range.begin + range.bytes && range.begin < other.begin + other.bytes;
        }
    }
    static const Range nothing{0, 0, "", false, false, false};
    machine.range_of_site.assign(launch.module->place_count, &nothing);
}

const ModuleKernel* find_kernel(const Module& module, const char* symbol) {
    for (u32 i = 0; i < module.kernel_count; i++) {
        if (!strcmp(module.kernels[i].symbol, symbol)) return &module.kernels[i];
    }
    return nullptr;
}

std::string bad_arguments(const PassedLaunch& launch) {
    const ModuleKernel& kernel = *machine.kernel;
    if (kernel.parameter_count != launch.argument_count) {
        return text("the kernel takes %u parameters, %u were given", kernel.parameter_count, launch.argument_count);
    }
    for (u32 i = 0; i < kernel.parameter_count; i++) {
        if (kernel.parameter_bytes[i] != launch.argument_bytes[i]) {
            return text("parameter %u has %u bytes, %u were given", i, kernel.parameter_bytes[i], launch.argument_bytes[i]);
        }
    }
    return "";
}

void forget_reports() {
    reports.clear();
    report_keys.clear();
    aborted = false;
}

void run_once() {
    launching_thread = pthread_self();
    running = nullptr;
    machine.blocks.clear();
    machine.idle = machine.restless = machine.wakes = 0;
    machine.first_block_serial = machine.last_serial + 1;
    if (machine.races) races_new_launch();
    if (machine.counting) count_new_launch();
    {
        CrashGuard guard;
        run_blocks();
    }
    machine.current = nullptr;
}

const PassedLaunch* again;  // what `run_again` runs

bool run_again() {
    const f64 took = seconds() - begun;
    set_up(*again);
    machine.counting = false;
    if (!time_limit || time_limit > kAgain * took + 1) time_limit = kAgain * took + 1;
    forget_reports();
    run_once();
    return reports.empty();
}

// Races on values that nobody uses are no error, but worth to be known.
void excuse(const PassedLaunch& launch) {
    const std::vector<Report> found = reports;
    for (const Report& report : found) {
        if (report.kind != "race") return;
    }
    again = &launch;
    const size_t told = printed;
    printed = kMostPrinted;  // it has been
    const bool unused = unused_by_all(run_again);
    printed = told;
    forget_reports();
    if (!unused) reports = found;
    else for (const Report& report : found) remark("unused", report.key, report.message + "; what is read there is used by nobody");
}

}  // namespace

// Runs one launch; answers its reports, "" where there are none.
extern "C" __attribute__((visibility("default"))) const char* sim_launch(const PassedLaunch* launch) {
    remarks.clear();
    remark_keys.clear();
    printed = 0;
    forget_reports();
    machine.module = launch->module;
    machine.kernel = find_kernel(*launch->module, launch->symbol);
    std::string problem = machine.kernel ? bad_arguments(*launch) : text("there is no kernel %s", launch->symbol);
    if (problem.empty()) {
        set_up(*launch);
        problem = bad_configuration();
    }
    if (!problem.empty()) {
        reports.push_back({"launch", problem});
        return as_text(reports);
    }
    unused_new_launch();
    run_once();
    if (machine.races && !aborted && !reports.empty()) excuse(*launch);
    return as_text(reports);
}

// What the last launch did that is worth to be known, and no error: the line and the text of each.
extern "C" __attribute__((visibility("default"))) const char* sim_remarks() { return as_text(remarks); }

}  // namespace sim
