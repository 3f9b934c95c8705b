// wgmma: four warps issue it together, and the accumulators change when one of them waits (PTX ISA 9.7.15).
//
// Each warp of a warpgroup issues the same sequence of operations; the n-th of each is one. An operation reads its
// matrices in shared memory, and the accumulators of all four warps, as late as a wait of any warp allows; both are
// then checked for races and for copies under way like every other access.
#include <algorithm>
#include <deque>

#include "asynchronous.hpp"
#include "hopper.hpp"

namespace sim {

namespace {

constexpr u32 kWarps = 4;
constexpr u32 kThreads = kWarps * kWarp;
constexpr u32 kRows = 64, kMostColumns = 256, kMostK = 32;
constexpr u32 kPiece = 16;  // bytes of a row of a core matrix
constexpr u32 kCore = 8;    // rows of a core matrix

// A matrix in shared memory, as the 64-bit descriptor says.
struct Matrix {
    u32 start, leading, stride, width;  // bytes; width of the swizzle, 0 for none

    explicit Matrix(u64 raw)
        : start(field(raw, 0)), leading(field(raw, 16)), stride(field(raw, 32)), width(kWidths[raw >> 62]) {}

    static constexpr u32 kWidths[4] = {0, 128, 64, 32};
    static u32 field(u64 raw, u32 bit) { return static_cast<u32>(raw >> bit & 0x3fff) << 4; }

    // The 16 bytes at piece `p` along the contiguous axis, `line` across it.
    // K contiguous: `p` counts along K, `line` is the row of A (column of B). Otherwise the other way round.
    u32 piece(bool k_contiguous, u32 line, u32 p) const {
        u32 across = line / kCore, inside = line % kCore, pieces = width / kPiece;
        if (k_contiguous) {
            u32 along = width ? p * kPiece : p * leading;
            return swizzled(start + across * stride + inside * (width ? width : kPiece) + along, width);
        }
        if (!width) return start + p * stride + across * leading + inside * kPiece;
        return swizzled(start + p / pieces * leading + p % pieces * kPiece + across * stride + inside * width, width);
    }
};

struct Copied {
    u32 thread;
    u32* to;
    const u32* from;
};

struct WgmmaOperation {
    WgmmaForm form;
    u64 a_matrix, b_matrix;
    bool a_in_registers, add;
    Site site;
    u32 thread;  // one of those that issued it
    u32 warps = 0;
    u32 fenced_at = 0;
    u64 read_a[kWarps] = {}, read_b = 0;  // fingerprints of its matrices when they were first issued: of A, by warp
    std::vector<u32*> sums[kThreads];
    u32 a[kThreads][4];
    std::vector<Copied> followers;
};

struct Warpgroup {
    std::deque<WgmmaOperation> operations;  // issued by some warp, and not landed
    u64 landed = 0;                         // operations before these
    u64 issued[kWarps] = {};
    std::deque<u64> committed[kWarps];  // number of operations up to the end of each group
    u64 waited[kWarps] = {};            // operations that the warp has waited for
    bool fenced[kWarps] = {};
    std::vector<Fiber*> waiters;
    SyncPoint point;  // what the landed operations have read

    u64 issued_by_all() const { return *std::min_element(issued, issued + kWarps); }
};
struct WgmmaState {
    Warpgroup groups[kMaxWarps / kWarps];
    bool used = false;

    void begin() {
        if (used) std::fill(std::begin(groups), std::end(groups), Warpgroup());
        used = false;
    }
};
OfBlock<WgmmaState> here;

Warpgroup& group_of(const Thread& self) { return here->groups[self.warp / kWarps]; }

[[noreturn]] void bad_wgmma(const Thread& self, const std::string& what, Site site) {
    fail("wgmma", what + ", " + where(site) + ", " + who(self));
}

// K of one operation: 32 bytes of a row of A.
u32 depth(const WgmmaForm& form) { return 8 * per_word(form.a); }
// Registers of a thread that the sums take.
u32 registers_of(const WgmmaForm& form) { return form.n / (form.sums == Sums::F16 ? 4 : 2); }

// --- the work -------------------------------------------------------------------------------------------------------

// Of the bytes of shared memory that some lines of a matrix (rows of A, columns of B) take, as they are now. 0: some
// lie outside, which its reading reports.
u64 fingerprint(u64 raw, u32 first, u32 lines, bool transposed, Element element) {
    const u32 parts = per_word(element), k = 8 * parts, per_piece = kPiece / 4 * parts;
    const Matrix matrix(raw);
    const u32 across = transposed ? k : first + lines, along = (transposed ? first + lines : k) / per_piece;
    u64 print = 1;
    for (u32 line = transposed ? 0 : first; line < across; line++) {
        for (u32 p = transposed ? first / per_piece : 0; p < along; p++) {
            const u32 address = matrix.piece(!transposed, line, p);
            if (address > machine.shared_bytes || machine.shared_bytes - address < kPiece) return 0;
            u64 words[2];
            memcpy(words, machine.arena + address, kPiece);
            for (u64 word : words) print = (print ^ word) * 0x9e3779b97f4a7c15ull, print ^= print >> 29;
        }
    }
    return print;
}
u64 print_of_a(const WgmmaOperation& op, u32 warp) {
    constexpr u32 kOwn = kRows / kWarps;
    return op.a_in_registers ? 0 : fingerprint(op.a_matrix, warp * kOwn, kOwn, op.form.transposed_a, op.form.a);
}
u64 print_of_b(const WgmmaOperation& op) { return fingerprint(op.b_matrix, 0, op.form.n, op.form.transposed_b, op.form.b); }

// Nothing may write to the matrices from the issue to the wait, not even who orders it before the wait.
void require_unchanged(const Thread& self, const WgmmaOperation& op) {
    bool a = false;
    for (u32 warp = 0; warp < kWarps; warp++) a |= print_of_a(op, warp) != op.read_a[warp];
    if (!a && print_of_b(op) == op.read_b) return;
    bad_wgmma(self, std::string("matrix ") + (a ? "A" : "B") + " in shared memory was changed while the product was under way",
              op.site);
}

// A or B as a table of [row or column][k].
void read_matrix(Thread& self, const WgmmaOperation& op, const char* name, u64 raw, u32 lines, bool transposed,
                 Element element, f64 (*out)[kMostK]) {
    const u32 parts = per_word(element), k = depth(op.form), per_piece = kPiece / 4 * parts;
    const Matrix matrix(raw);
    if (raw >> 49 & 7)
        bad_wgmma(self, std::string("matrix ") + name + " has a base offset, which is not simulated", op.site);
    // The swizzle goes by the bits of the address: a tile that TMA brought lies as it is read, wherever it begins. Who
    // works the swizzle out from the tile's own beginning reads other values, as on a card.
    if (const u32 pattern = matrix.width * kCore; matrix.start & (pattern - 1) & ~127u) {
        remark("swizzle", where(op.site) + name,
               std::string("matrix ") + name +
                   text(" begins at shared byte %u, inside of its swizzle's pattern, which repeats every %u bytes: right only where what"
                        " filled it went by the address too, as TMA does, ",
                        matrix.start, pattern) +
                   where(op.site) + ". A tile is to be aligned to the pattern (PTX ISA, \"Swizzling Modes\")");
    }
    const u32 across = transposed ? k : lines, along = (transposed ? lines : k) / per_piece;
    for (u32 line = 0; line < across; line++) {
        for (u32 p = 0; p < along; p++) {
            u32 address = matrix.piece(!transposed, line, p), words[kPiece / 4];
            check_proxy(self, address, kPiece, op.fenced_at, "wgmma", op.site);
            memcpy(words, reach_shared(self, address, kPiece, kRead, op.site), kPiece);
            for (u32 e = 0; e < per_piece; e++) {
                f64 value = decode(element, words[e / parts], e % parts);
                (transposed ? out[p * per_piece + e][line] : out[line][p * per_piece + e]) = value;
            }
        }
    }
}

// A from registers: each warp has 16 rows, in the layout of mma.sync.
void spread_registers(const WgmmaOperation& op, f64 (*out)[kMostK]) {
    const u32 parts = per_word(op.form.a);
    for (u32 t = 0; t < kThreads; t++) {
        u32 lane = t % kWarp;
        for (u32 i = 0; i < 4; i++) {
            u32 row = t / kWarp * 16 + lane / 4 + i % 2 * 8, word = lane % 4 + i / 2 * 4;
            for (u32 part = 0; part < parts; part++)
                out[row][word * parts + part] = decode(op.form.a, op.a[t][i], part);
        }
    }
}

u32 updated_half(const WgmmaOperation& op, u32 word, f64 low_sum, f64 high_sum) {
    f64 before[2] = {op.add ? F16::decode(low(word)) : 0.0, op.add ? F16::decode(high(word)) : 0.0};
    return pack(F16::round(before[0] + low_sum), F16::round(before[1] + high_sum));
}

u32 updated(const WgmmaOperation& op, u32 word, f64 sum) {
    if (op.form.sums != Sums::F32) return whole_sum(op.form.sums, (op.add ? static_cast<f64>(static_cast<s32>(word)) : 0.0) + sum);
    return bits<u32>(static_cast<f32>((op.add ? static_cast<f64>(bits<f32>(word)) : 0.0) + sum));
}

void land(Thread& self, WgmmaOperation& op) {
    static f64 a[kRows][kMostK], b[kMostColumns][kMostK];
    const u32 n = op.form.n, k = depth(op.form);
    Uncounted guard;
    if (op.a_in_registers) spread_registers(op, a);
    else read_matrix(self, op, "A", op.a_matrix, kRows, op.form.transposed_a, op.form.a, a);
    read_matrix(self, op, "B", op.b_matrix, n, op.form.transposed_b, op.form.b, b);
    require_unchanged(self, op);  // after the races were looked for, which say by whom
    const f64 sign = op.form.negate_a != op.form.negate_b ? -1.0 : 1.0;
    for (u32 t = 0; t < kThreads; t++) {
        u32 lane = t % kWarp, first_row = t / kWarp * 16 + lane / 4;
        f64 pair[2];
        for (u32 i = 0; i < n / 2; i++) {
            u32 row = first_row + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            f64 sum = 0;
            for (u32 j = 0; j < k; j++) sum += a[row][j] * b[column][j];
            pair[i % 2] = sign * sum;
            if (op.form.sums != Sums::F16) *op.sums[t][i] = updated(op, *op.sums[t][i], pair[i % 2]);
            else if (i % 2) *op.sums[t][i / 2] = updated_half(op, *op.sums[t][i / 2], pair[0], pair[1]);
        }
    }
    for (const Copied& copied : op.followers) *copied.to = *copied.from;
}

void land_until(Thread& self, Warpgroup& group, u64 target) {
    while (group.landed < target) {
        land(self, group.operations.front());
        group.operations.pop_front();
        group.landed++;
    }
    if (machine.races) race_release(self, group.point);
    stirred();
}

// --- a warp meets, then its warpgroup's sequence goes on ------------------------------------------------------------

struct Issued {
    const WgmmaForm* form;
    u32* const* sums;
    const u32* a;
    u64 a_matrix, b_matrix;
    bool add;
    u32 number;  // the answer
};

bool same_form(const WgmmaForm& x, const WgmmaForm& y) {
    return x.a == y.a && x.b == y.b && x.sums == y.sums && x.n == y.n && x.negate_a == y.negate_a &&
           x.negate_b == y.negate_b && x.transposed_a == y.transposed_a && x.transposed_b == y.transposed_b;
}

void require_agreement(const WgmmaOperation& op, const Issued& mine, const Thread& thread, Site site) {
    bool same_a = op.a_in_registers == (mine.a != nullptr) && (op.a_in_registers || op.a_matrix == mine.a_matrix);
    if (same_form(op.form, *mine.form) && same_a && op.b_matrix == mine.b_matrix && op.add == mine.add) return;
    bad_wgmma(thread,
              "the threads of a warpgroup issue different operations or matrices: " + thread_name(op.thread) + ", " +
                  where(op.site) + ", and this",
              site);
}

// The operation that this warp issues now: a new one, or one that another warp of the group has issued already.
WgmmaOperation& next_operation(Warpgroup& group, const Lanes& lanes) {
    const Thread& first = lanes.thread(0);
    u64 number = group.issued[first.warp % kWarps]++;
    if (number - group.landed < group.operations.size()) return group.operations[number - group.landed];
    const Issued& mine = lanes.of<Issued>(0);
    WgmmaOperation& op = group.operations.emplace_back();
    op.form = *mine.form;
    op.a_matrix = mine.a_matrix, op.b_matrix = mine.b_matrix;
    op.a_in_registers = mine.a != nullptr, op.add = mine.add;
    op.site = lanes.site(0), op.thread = first.index;
    op.read_b = print_of_b(op);  // all of it is each warp's; of A a warp has 16 rows
    return op;
}

void perform_issue(const Lanes& lanes) {
    require_one_instruction(lanes, "wgmma.mma_async");
    Thread& first = lanes.thread(0);
    Warpgroup& group = group_of(first);
    here->used = true;
    if (!group.fenced[first.warp % kWarps])
        bad_wgmma(first, "the warp's first wgmma comes without a wgmma.fence before it", lanes.site(0));
    WgmmaOperation& op = next_operation(group, lanes);
    op.fenced_at = std::max(op.fenced_at, proxy_time(first.index, kWarp));
    each_lane(kAllLanes, [&](u32 lane) {
        Issued& mine = lanes.of<Issued>(lane);
        mine.number = static_cast<u32>(group.issued[first.warp % kWarps]);
        require_agreement(op, mine, lanes.thread(lane), lanes.site(lane));
        u32 t = first.warp % kWarps * kWarp + lane;
        op.sums[t].assign(mine.sums, mine.sums + registers_of(op.form));
        if (mine.a) std::copy(mine.a, mine.a + 4, op.a[t]);
    });
    op.read_a[first.warp % kWarps] = print_of_a(op, first.warp % kWarps);
    if (++op.warps < kWarps) return;
    stirred();
    for (Fiber* fiber : group.waiters) wake(*fiber);
    group.waiters.clear();
    if (lands_at_once()) land_until(first, group, group.issued_by_all());
}
const Operation kIssue{"wgmma.mma_async", perform_issue, true};

void perform_fence(const Lanes& lanes) {
    const Thread& first = lanes.thread(0);
    group_of(first).fenced[first.warp % kWarps] = true;
    here->used = true;
}
const Operation kFence{"wgmma.fence", perform_fence, true};

void perform_commit(const Lanes& lanes) {
    const Thread& first = lanes.thread(0);
    Warpgroup& group = group_of(first);
    here->used = true;
    group.committed[first.warp % kWarps].push_back(group.issued[first.warp % kWarps]);
}
const Operation kCommit{"wgmma.commit_group", perform_commit, true};

struct Awaited {
    u32 newest;
    u64 target;  // operations that must have landed
};

void perform_wait(const Lanes& lanes) {
    const Thread& first = lanes.thread(0);
    auto& committed = group_of(first).committed[first.warp % kWarps];
    u64& target = group_of(first).waited[first.warp % kWarps];
    while (committed.size() > lanes.of<Awaited>(0).newest) {
        target = committed.front();
        committed.pop_front();
    }
    each_lane(kAllLanes, [&](u32 lane) { lanes.of<Awaited>(lane).target = target; });
}
const Operation kWait{"wgmma.wait_group", perform_wait, true};

// Whether an operation in flight writes this register of thread `t`.
bool writes(const WgmmaOperation& op, u32 t, const u32* sum) {
    if (std::find(op.sums[t].begin(), op.sums[t].end(), sum) != op.sums[t].end()) return true;
    return std::any_of(op.followers.begin(), op.followers.end(),
                       [&](const Copied& c) { return c.thread == t && c.to == sum; });
}

}  // namespace

u32 wgmma(Thread& self, const WgmmaForm& form, u32* const* sums, const u32* a, u64 a_matrix, u64 b_matrix, bool add,
          Site site) {
    Issued mine{&form, sums, a, a_matrix, b_matrix, add, 0};
    collective(self, kIssue, kAllLanes, &mine, site);
    return mine.number;
}

void wgmma_too_early(Thread& self, bool writes, Site site) {
    bad_wgmma(self, std::string("a register of a product under way is ") + (writes ? "written" : "read") +
                        " before wgmma.wait_group", site);
}
void wgmma_unfenced(Thread& self, Site site) {
    bad_wgmma(self, "a register of the product was used by another instruction after the last wgmma.fence", site);
}
void wgmma_unfenced_a(Thread&, Site site) {
    remark("unfenced register", where(site),
           "a register of matrix A was written after the last wgmma.fence, " + where(site) +
               ": ptxas, which sees what is written to it, waits; the manual wants it before the fence");
}

void wgmma_fence(Thread& self, Site site) { collective(self, kFence, kAllLanes, nullptr, site); }
void wgmma_commit(Thread& self, Site site) { collective(self, kCommit, kAllLanes, nullptr, site); }

u32 wgmma_wait(Thread& self, u32 newest, Site site) {
    Awaited mine{newest, 0};
    collective(self, kWait, kAllLanes, &mine, site);
    Warpgroup& group = group_of(self);
    while (group.issued_by_all() < mine.target) {
        group.waiters.push_back(self.fiber);
        park("waits for the other warps of its warpgroup to issue the same wgmma", site);
    }
    if (group.landed < mine.target) land_until(self, group, mine.target);
    if (machine.races) race_acquire(self, group.point);
    return static_cast<u32>(mine.target);
}

void follow_sum(Thread& self, void* to, const void* from) {
    Warpgroup& group = group_of(self);
    const u32 t = self.warp % kWarps * kWarp + self.lane;
    const u32* source = static_cast<const u32*>(from);
    for (auto op = group.operations.rbegin(); op != group.operations.rend(); ++op) {
        if (!writes(*op, t, source)) continue;
        op->followers.push_back({t, static_cast<u32*>(to), source});
        return;
    }
}

}  // namespace sim
