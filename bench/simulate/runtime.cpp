// Fibers, the scheduler of a block, barriers, and the launch: everything that decides who runs when.
#include "machine.hpp"

#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <algorithm>
#include <set>

namespace sim {

Machine machine;

namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kPage = 4096;
constexpr u32 kRing = 2048;  // a power of two above kMaxThreads
constexpr u32 kMaxReports = 20;
constexpr u32 kMaxSpins = 1000000;  // yields of pollers without any progress: then they wait for ever

struct BarrierState {
    u32 arrived = 0, expected = 0;
    bool whole = false;
    std::vector<Fiber*> waiters;
    u32 votes = 0;  // bar.red: waiters whose predicate is true
    SyncPoint point;
};

struct Report {
    std::string kind, message;
};

Fiber* ring[kRing];
u32 ring_head = 0, ring_tail = 0;
BarrierState barriers[kBarriers];
void* main_stack_pointer = nullptr;
bool aborted = false;
std::vector<Report> reports;
std::set<std::string> report_keys;
std::vector<void (*)()> block_hooks;
pthread_t launching_thread;
u64 ticks = 0;

}  // namespace

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

void note(const char* kind, const std::string& key, const std::string& message) {
    if (reports.size() < kMaxReports && report_keys.insert(key).second) reports.push_back({kind, message});
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
    fiber.state = State::Ready;
    ring[ring_tail++ % kRing] = &fiber;
}

Fiber* next_ready() {
    if (ring_head == ring_tail) return nullptr;
    if (machine.seed) {
        u32 chosen = ring_head + static_cast<u32>(random_number() % (ring_tail - ring_head));
        std::swap(ring[ring_head % kRing], ring[chosen % kRing]);
    }
    return ring[ring_head++ % kRing];
}

[[noreturn]] void deadlock() {
    const Dim3& block = machine.block;
    std::string message = text("deadlock in block (%u,%u,%u)", block.x, block.y, block.z);
    u32 shown = 0;
    for (u32 i = 0; i < machine.threads; i++) {
        const Fiber& fiber = machine.fibers[i];
        if (fiber.state == State::Done) continue;
        if (++shown > 6) {
            message += "; …";
            break;
        }
        const char* waits_for = fiber.state == State::Ready ? "polls" : fiber.waits_for;
        message += (shown == 1 ? ": " : "; ") + thread_name(i) + " " + waits_for;
        if (fiber.state == State::Warp) message += text(" with mask 0x%08x", fiber.mask);
        message += ", " + where(fiber.site);
    }
    if (machine.grid.x * machine.grid.y * machine.grid.z > 1) {
        message += " (blocks run one after the other here: one that waits for a later block never ends)";
    }
    fail("deadlock", message);
}

}  // namespace

void run_another() {
    Fiber* next = next_ready();
    if (!next && machine.active_requests) {
        settle_active_masks();
        next = next_ready();
    }
    if (!next && machine.live) deadlock();
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
    machine.spins = 0;
}

void progress() { machine.spins = 0; }

void yield_to_others(Site site) {
    Fiber& fiber = *machine.current;
    fiber.site = site;
    if (++machine.spins > kMaxSpins) deadlock();
    make_ready(fiber);
    Fiber* next = next_ready();
    // Only pollers are ready: those who asked which lanes are active have waited long enough.
    if (machine.active_requests && machine.spins % kRing == 0) settle_active_masks();
    if (next != &fiber) jump(next);
}

void on_new_block(void (*hook)()) { block_hooks.push_back(hook); }

// --- barriers -------------------------------------------------------------------------------------------------------

namespace {

// CUDA's guide wants __syncthreads() to be reached by all threads of the block or by none. (The PTX manual lets a thread
// that has exited count as arrived; a kernel that leans on that is reported all the same, because CUDA C++ does not promise it.)
[[noreturn]] void exited_before_barrier(const Fiber& exited, const Fiber& waiting) {
    fail("divergent barrier", "divergent barrier: " + who(waiting.thread) + " waits at " + where(waiting.site) + ", but " +
                                  thread_name(exited.thread.index) + " has returned, " + where(exited.thread.exit_site));
}

[[noreturn]] void bad_barrier(const Thread& self, const std::string& what, Site site) {
    fail("barrier", what + ", " + where(site) + ", " + who(self));
}

// What must hold where all threads of the block meet: they come to one place, and none has returned.
void check_whole(const Thread& self, const BarrierState& barrier) {
    if (!barrier.waiters.empty()) {
        const Fiber& other = *barrier.waiters[0];  // stands for all: each was compared with it when it came
        if (!same_place(other.site, self.fiber->site)) {
            fail("divergent barrier", "divergent barrier: " + who(other.thread) + " waits at " + where(other.site) +
                                          ", but " + thread_name(self.index) + " at " + where(self.fiber->site));
        }
    }
    for (u32 i = 0; machine.exited && i < machine.threads; i++) {
        if (machine.fibers[i].state == State::Done) exited_before_barrier(machine.fibers[i], *self.fiber);
    }
}

BarrierState& arrive(Thread& self, u32 id, u32 threads, bool waits, Site site) {
    if (id >= kBarriers) bad_barrier(self, text("barrier %u does not exist (0 to 15)", id), site);
    if (threads % kWarp) bad_barrier(self, text("a barrier for %u threads, no multiple of 32", threads), site);
    BarrierState& barrier = barriers[id];
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
    if (!whole && machine.races) race_release(self, barrier.point);
    return barrier;
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
    if (barrier.arrived == barrier.expected) open(barrier);
    run_another();
}

}  // namespace

void barrier_sync(Thread& self, u32 id, u32 threads, Site site) { sync(self, id, threads, false, site); }

void barrier_arrive(Thread& self, u32 id, u32 threads, Site site) {
    BarrierState& barrier = arrive(self, id, threads, false, site);
    if (barrier.arrived == barrier.expected) open(barrier);
}

u32 barrier_count(Thread& self, u32 id, u32 threads, bool value, Site site) {
    sync(self, id, threads, value, site);
    return self.fiber->votes;
}

bool barrier_vote(Thread& self, u32 id, u32 threads, bool value, Vote kind, Site site) {
    sync(self, id, threads, value, site);
    return kind == Vote::All ? self.fiber->votes == self.fiber->voters : self.fiber->votes > 0;
}

void fence(Thread& self) {
    if (machine.races) race_fence(self);
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

u64 clock() { return ticks += 64; }

extern "C" __attribute__((used, visibility("hidden"))) void sim_fiber_main() {
    Fiber& fiber = *machine.current;
    machine.kernel->body(fiber.thread, machine.parameters);
    fiber.open_copies.clear();  // a copy that nobody waited for never lands
    fiber.copy_groups.clear();
    fiber.state = State::Done;
    machine.live--;
    machine.exited++;
    machine.spins = 0;
    Warp& warp = machine.warps[fiber.thread.warp];
    warp.live &= ~(1u << fiber.thread.lane);
    for (const BarrierState& barrier : barriers) {
        if (barrier.whole && !barrier.waiters.empty()) exited_before_barrier(fiber, *barrier.waiters[0]);
    }
    each_lane(warp.waiting, [&](u32 lane) {
        if (warp.waiting >> lane & 1) try_operation(warp, warp.fibers[lane].mask);
    });
    run_another();
    abort();  // not reached: nobody resumes a thread that is done
}

// --- blocks and launches --------------------------------------------------------------------------------------------

namespace {

void make_fibers(u32 threads) {
    if (machine.fibers.empty()) machine.fibers.resize(kMaxThreads);
    for (u32 i = 0; i < threads; i++) {
        Fiber& fiber = machine.fibers[i];
        if (fiber.stack) continue;
        void* memory = mmap(nullptr, kStackBytes + kPage, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) abort();
        mprotect(memory, kPage, PROT_NONE);
        fiber.stack = static_cast<u8*>(memory) + kPage;
    }
}

void start_thread(u32 index) {
    Fiber& fiber = machine.fibers[index];
    const Dim3& size = machine.block_size;
    Thread& thread = fiber.thread;
    thread.tid = {index % size.x, index / size.x % size.y, index / (size.x * size.y)};
    thread.ctaid = machine.block;
    thread.ntid = size;
    thread.nctaid = machine.grid;
    thread.index = index;
    thread.lane = index % kWarp;
    thread.warp = index / kWarp;
    thread.shared_window = reinterpret_cast<u64>(machine.arena);
    thread.dynamic_shared = machine.dynamic_shared;
    thread.total_shared = machine.shared_bytes;
    thread.local_begin = thread.local_bytes = 0;
    thread.exit_site = 0;
    thread.fiber = &fiber;
    fiber.open_copies.clear();
    fiber.copy_groups.clear();
    fiber.poll_site = ~0u;
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

void run_block() {
    ring_head = ring_tail = 0;
    machine.block_serial++;
    machine.live = machine.threads;
    machine.exited = machine.spins = machine.active_requests = 0;
    for (u32 w = 0; w < kMaxWarps; w++) machine.warps[w] = Warp{&machine.fibers[w * kWarp], 0, 0, 0};
    for (BarrierState& barrier : barriers) barrier = BarrierState();
    new_block_memory();
    if (machine.races) races_new_block();
    for (auto hook : block_hooks) hook();
    for (u32 i = 0; i < machine.threads; i++) start_thread(i);
    for (Warp& warp : machine.warps) warp.live = warp.existing;
    machine.current = nullptr;
    jump(next_ready());
    if (machine.counting) count_end_of_block();
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

std::string bad_configuration() {
    const ModuleKernel& kernel = *machine.kernel;
    const Dim3 &block = machine.block_size, &grid = machine.grid, &limit = kernel.block_limit, &wanted = kernel.block_wanted;
    u64 threads = static_cast<u64>(block.x) * block.y * block.z;
    if (!threads || threads > kMaxThreads || block.z > 64) {
        return text("a block of (%u,%u,%u) threads; a block has 1 to 1024, at most 64 in z", block.x, block.y, block.z);
    }
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
        return text("a grid of (%u,%u,%u) blocks", grid.x, grid.y, grid.z);
    }
    if (limit.x && threads > static_cast<u64>(limit.x) * limit.y * limit.z) {
        return text("a block of %llu threads, but the kernel's __launch_bounds__ allow %u",
                    static_cast<unsigned long long>(threads), limit.x * limit.y * limit.z);
    }
    if (wanted.x && (wanted.x != block.x || wanted.y != block.y || wanted.z != block.z)) {
        return text("a block of (%u,%u,%u) threads, but the kernel wants (%u,%u,%u)", block.x, block.y, block.z, wanted.x,
                    wanted.y, wanted.z);
    }
    if (machine.shared_bytes > kSharedLimit) {
        return text("%u bytes of shared memory; a block has at most %u", machine.shared_bytes, kSharedLimit);
    }
    return "";
}

void run_blocks() {
    const Dim3& grid = machine.grid;
    u64 blocks = static_cast<u64>(grid.x) * grid.y * grid.z;
    std::vector<u32> order(machine.seed ? blocks : 0);
    for (u64 i = 0; i < order.size(); i++) {
        order[i] = static_cast<u32>(i);
        std::swap(order[i], order[random_number() % (i + 1)]);
    }
    for (u64 i = 0; i < blocks && !aborted; i++) {
        u64 block = machine.seed ? order[i] : i;
        machine.block = {static_cast<u32>(block % grid.x), static_cast<u32>(block / grid.x % grid.y),
                         static_cast<u32>(block / grid.x / grid.y)};
        run_block();
    }
}

const char* reports_as_text() {
    static std::string all;
    all.clear();
    for (const Report& report : reports) all += report.kind + "\t" + report.message + "\x1e";
    return all.c_str();
}

}  // namespace

// --- what Python calls (launcher.py) --------------------------------------------------------------------------------

struct PassedRange {
    u64 begin, bytes;
    const char* name;
    u32 writable;
};

struct PassedLaunch {
    const Module* module;
    const char* symbol;
    u32 grid[3], block[3];
    u32 dynamic_shared, races, counting, argument_count, range_count, padding;
    u64 seed;
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
    machine.current = nullptr;
    machine.ranges.clear();
    for (u32 i = 0; i < launch.range_count; i++) {
        const PassedRange& r = launch.ranges[i];
        machine.ranges.push_back({r.begin, r.bytes, r.name, r.writable != 0, true, true});
    }
    for (u32 i = 0; i < launch.module->variable_count; i++) {
        const ModuleVariable& v = launch.module->variables[i];
        machine.ranges.push_back({reinterpret_cast<u64>(v.address), v.bytes, v.name, v.writable, v.writable, v.writable});
    }
    for (u32 i = 0; i < kernel.parameter_count; i++) {
        std::string name = text("parameter %u", i);
        machine.ranges.push_back({reinterpret_cast<u64>(launch.arguments[i]), kernel.parameter_bytes[i], name, false, false, false});
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

}  // namespace

// Runs one launch; answers its reports, "" where there are none.
extern "C" __attribute__((visibility("default"))) const char* sim_launch(const PassedLaunch* launch) {
    reports.clear();
    report_keys.clear();
    aborted = false;
    machine.module = launch->module;
    machine.kernel = find_kernel(*launch->module, launch->symbol);
    std::string problem = machine.kernel ? bad_arguments(*launch) : text("there is no kernel %s", launch->symbol);
    if (problem.empty()) {
        set_up(*launch);
        problem = bad_configuration();
    }
    if (!problem.empty()) {
        reports.push_back({"launch", problem});
        return reports_as_text();
    }
    launching_thread = pthread_self();
    make_fibers(machine.threads);
    machine.first_block_serial = machine.block_serial + 1;
    if (machine.races) races_new_launch();
    if (machine.counting) count_new_launch();
    {
        CrashGuard guard;
        run_blocks();
    }
    machine.current = nullptr;
    return reports_as_text();
}

}  // namespace sim
