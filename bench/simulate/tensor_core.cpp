// ldmatrix, stmatrix and mma.sync: 32 lanes bring their pieces of small matrices, and the last one does the work of
// all.
//
// A product is exact and a sum is made in f64, then rounded once: as good as a tensor core can be, and independent of
// the order of the terms. Real ones keep fewer bits while they add, which the manual leaves open.
#include "tensor_core.hpp"

#include "asynchronous.hpp"

namespace sim {

void require_one_instruction(const Lanes& lanes, const char* name) {
    Site first = lanes.site(0);
    each_lane(lanes.mask, [&](u32 lane) {
        if (same_place(lanes.site(lane), first)) return;
        fail("warp operation", std::string("lanes of one warp meet in different ") + name +
                                   " instructions: " + who(lanes.thread(0)) + ", " + where(first) + "; " +
                                   thread_name(lanes.thread(lane).index) + ", " + where(lanes.site(lane)));
    });
}

namespace {

// --- mma.sync -------------------------------------------------------------------------------------------------------
// Counted in 32-bit words all shapes are alike. Register i of A is word lane % 4 + i / 2 * 4 of row lane / 4 + i % 2 *
// 8, register i of B is word lane % 4 + i * 4 of column lane / 4, and C and D have pairs of columns: pair lane % 4.
// Where A has 8 rows, register i is word lane % 4 + i * 4 of row lane / 4, and C and D have one pair.

constexpr u32 kRows = 16, kColumns = 8, kMostK = 32;

struct Place {
    u32 row, column;
};
Place of_a(u32 rows, u32 lane, u32 i) {
    return rows == kRows ? Place{lane / 4 + i % 2 * 8, lane % 4 + i / 2 * 4} : Place{lane / 4, lane % 4 + i * 4};
}
Place of_c(u32 lane, u32 i) { return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2}; }

struct Mma {
    MmaForm form;
    u32* d;
    const u32 *a, *b, *c;
};

f64 addend(const Mma& mine, u32 i) {
    const Sums sums = mine.form.sums;
    if (sums == Sums::F16) return F16::decode(i % 2 ? high(mine.c[i / 2]) : low(mine.c[i / 2]));
    return sums == Sums::F32 ? static_cast<f64>(bits<f32>(mine.c[i])) : static_cast<f64>(static_cast<s32>(mine.c[i]));
}

void perform_mma(const Lanes& lanes) {
    require_one_instruction(lanes, "mma.sync");
    const MmaForm form = lanes.of<Mma>(0).form;
    const u32 parts = per_word(form.a), k = form.words * parts;
    f64 a[kRows][kMostK], b[kColumns][kMostK];
    each_lane(kAllLanes, [&](u32 lane) {
        const Mma& mine = lanes.of<Mma>(lane);
        for (u32 part = 0; part < parts; part++) {
            for (u32 i = 0; i < form.words * form.rows / 32; i++) {
                const Place at = of_a(form.rows, lane, i);
                a[at.row][at.column * parts + part] = decode(form.a, mine.a[i], part);
            }
            for (u32 i = 0; i < form.words / 4; i++) {
                b[lane / 4][(lane % 4 + i * 4) * parts + part] = decode(form.b, mine.b[i], part);
            }
        }
    });
    each_lane(kAllLanes, [&](u32 lane) {
        Mma& mine = lanes.of<Mma>(lane);
        const u32 count = form.rows / 4;
        f64 sums[4];
        for (u32 i = 0; i < count; i++) {
            const Place at = of_c(lane, i);
            sums[i] = addend(mine, i);
            for (u32 j = 0; j < k; j++) sums[i] += a[at.row][j] * b[at.column][j];
        }
        if (form.sums == Sums::F16) {
            for (u32 i = 0; i < count / 2; i++) mine.d[i] = pack(F16::round(sums[2 * i]), F16::round(sums[2 * i + 1]));
        } else if (form.sums == Sums::F32) {
            for (u32 i = 0; i < count; i++) mine.d[i] = bits<u32>(static_cast<f32>(sums[i]));
        } else {
            for (u32 i = 0; i < count; i++) mine.d[i] = whole_sum(form.sums, sums[i]);
        }
    });
}
const Operation kMma{"mma.sync", perform_mma, true};

struct MmaDoubles {
    u32 rows, k;
    f64* d;
    const f64 *a, *b, *c;
};

// Each product is added by one fused operation, in the order of K: what a card does is not said.
void perform_mma_doubles(const Lanes& lanes) {
    require_one_instruction(lanes, "mma.sync");
    const u32 rows = lanes.of<MmaDoubles>(0).rows, k = lanes.of<MmaDoubles>(0).k;
    f64 a[kRows][kMostK], b[kColumns][kMostK];
    each_lane(kAllLanes, [&](u32 lane) {
        const MmaDoubles& mine = lanes.of<MmaDoubles>(lane);
        for (u32 i = 0; i < k * rows / 32; i++) {
            const Place at = of_a(rows, lane, i);
            a[at.row][at.column] = mine.a[i];
        }
        for (u32 i = 0; i < k / 4; i++) b[lane / 4][lane % 4 + i * 4] = mine.b[i];
    });
    each_lane(kAllLanes, [&](u32 lane) {
        MmaDoubles& mine = lanes.of<MmaDoubles>(lane);
        for (u32 i = 0; i < rows / 4; i++) {
            const Place at = of_c(lane, i);
            f64 sum = mine.c[i];
            for (u32 j = 0; j < k; j++) sum = __builtin_fma(a[at.row][j], b[at.column][j], sum);
            mine.d[i] = sum;
        }
    });
}
const Operation kMmaDoubles{"mma.sync", perform_mma_doubles, true};

// --- ldmatrix and stmatrix ------------------------------------------------------------------------------------------
// Lane l has, of matrix j, the elements 2 * (l % 4) and 2 * (l % 4) + 1 of row l / 4 (transposed: of column l / 4).

constexpr u32 kSide = 8;
constexpr u32 kRowBytes = 16;

struct Matrices {
    u32* values;
    u32 count;
    bool transposed;
    u64 address;
};

struct Pieces {
    u16 at[4][kSide][kSide];
};

u16& element_of(Pieces& pieces, const Matrices& mine, u32 matrix, u32 lane, u32 half) {
    u32 row = lane / 4, column = lane % 4 * 2 + half;
    return mine.transposed ? pieces.at[matrix][column][row] : pieces.at[matrix][row][column];
}

void perform_load(const Lanes& lanes) {
    require_one_instruction(lanes, "ldmatrix");
    Pieces pieces;
    const u32 count = lanes.of<Matrices>(0).count;
    for (u32 lane = 0; lane < count * kSide; lane++) {
        u64 address = lanes.of<Matrices>(lane).address;
        const void* row = reach_shared(lanes.thread(lane), address, kRowBytes, kRead, lanes.site(lane));
        memcpy(pieces.at[lane / kSide][lane % kSide], row, kRowBytes);
    }
    each_lane(kAllLanes, [&](u32 lane) {
        const Matrices& mine = lanes.of<Matrices>(lane);
        for (u32 j = 0; j < count; j++) {
            mine.values[j] = pack(element_of(pieces, mine, j, lane, 0), element_of(pieces, mine, j, lane, 1));
        }
    });
}
const Operation kLoad{"ldmatrix", perform_load, true};

void perform_store(const Lanes& lanes) {
    require_one_instruction(lanes, "stmatrix");
    Pieces pieces;
    const u32 count = lanes.of<Matrices>(0).count;
    each_lane(kAllLanes, [&](u32 lane) {
        const Matrices& mine = lanes.of<Matrices>(lane);
        for (u32 j = 0; j < count; j++) {
            element_of(pieces, mine, j, lane, 0) = low(mine.values[j]);
            element_of(pieces, mine, j, lane, 1) = high(mine.values[j]);
        }
    });
    for (u32 lane = 0; lane < count * kSide; lane++) {
        const void* row = pieces.at[lane / kSide][lane % kSide];
        u64 address = lanes.of<Matrices>(lane).address;
        memcpy(reach_shared(lanes.thread(lane), address, kRowBytes, kWrite, lanes.site(lane), row), row, kRowBytes);
    }
}
const Operation kStore{"stmatrix", perform_store, true};

}  // namespace

void mma(Thread& self, MmaForm form, u32* d, const u32* a, const u32* b, const u32* c, Site site) {
    Mma mine{form, d, a, b, c};
    collective(self, kMma, kAllLanes, &mine, site);
}

void mma_doubles(Thread& self, u32 rows, u32 k, f64* d, const f64* a, const f64* b, const f64* c, Site site) {
    MmaDoubles mine{rows, k, d, a, b, c};
    collective(self, kMmaDoubles, kAllLanes, &mine, site);
}

void load_matrices(Thread& self, u32* d, u32 count, bool transposed, u64 address, Site site) {
    Matrices mine{d, count, transposed, address};
    collective(self, kLoad, kAllLanes, &mine, site);
}

void store_matrices(Thread& self, const u32* values, u32 count, bool transposed, u64 address, Site site) {
    Matrices mine{const_cast<u32*>(values), count, transposed, address};
    collective(self, kStore, kAllLanes, &mine, site);
}

}  // namespace sim
