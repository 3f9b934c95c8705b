// wmma: which lane has which element of a fragment is not defined by the manual, so a plain order is taken: slot s of lane
// l is element l * slots + s, row by row. Where a lane has more slots than elements are left (f16), each is there twice.
#include "wmma.hpp"

#include <vector>

#include "arithmetic.hpp"
#include "asynchronous.hpp"
#include "tensor_core.hpp"

namespace sim {

namespace {

u32 bits_of(Kind kind) {
    if (kind == Kind::S8 || kind == Kind::U8) return 8;
    if (kind == Kind::F64) return 64;
    return kind == Kind::F16 || kind == Kind::Bf16 ? 16 : 32;
}

f64 number(Kind kind, u64 wide) {
    const u32 raw = static_cast<u32>(wide);
    switch (kind) {
        case Kind::F64: return bits<f64>(wide);
        case Kind::F16: return F16::decode(static_cast<u16>(raw));
        case Kind::Bf16: return Bf16::decode(static_cast<u16>(raw));
        case Kind::Tf32: return bits<f32>(raw & 0xffffe000u);
        case Kind::F32: return bits<f32>(raw);
        case Kind::S8: return static_cast<s8>(raw);
        case Kind::U8: return static_cast<u8>(raw);
        default: return static_cast<s32>(raw);
    }
}

u64 raw_of(Kind kind, f64 x, bool saturate) {
    if (kind == Kind::F64) return bits<u64>(x);
    if (kind == Kind::F16) return F16::round(x);
    if (kind == Kind::S32) return whole_sum(saturate ? Sums::S32Saturated : Sums::S32, x);
    return bits<u32>(static_cast<f32>(x));
}

// The slots of one lane's registers: `at` is the element that each stands for.
template <class Do>
void each_slot(u32 lane, u32 elements, u32 registers, Kind kind, Do what) {
    const u32 width = bits_of(kind), slots = registers * 32 / width;
    for (u32 s = 0; s < slots; s++) what(s * width / 32, s * width % 32, (lane * slots + s) % elements);
}
u64 part_of(const u32* word, u32 shift, Kind kind) {
    if (bits_of(kind) == 64) return word[0] | static_cast<u64>(word[1]) << 32;
    return bits_of(kind) == 32 ? *word : *word >> shift & ((1u << bits_of(kind)) - 1);
}
void set_part(u32* word, u32 shift, Kind kind, u64 wide) {
    const u32 raw = static_cast<u32>(wide);
    if (bits_of(kind) == 64) word[1] = static_cast<u32>(wide >> 32);
    u32 mask = bits_of(kind) >= 32 ? ~0u : ((1u << bits_of(kind)) - 1) << shift;
    *word = (*word & ~mask) | (raw << shift & mask);
}

struct Fragment {
    FragmentForm form;
    bool load;
    u32* registers;
    u64 address;
    u32 stride;
    Space space;
};

void* reach_in(Thread& self, Space space, u64 address, u32 bytes, u32 access, Site site, const void* stored) {
    if (space == Space::Shared) return reach_shared(self, address, bytes, access, site, stored);
    if (space == Space::Global) return reach_global(self, address, bytes, access, site, stored);
    return reach_generic(self, address, bytes, access, site, stored);
}

void perform_access(const Lanes& lanes) {
    require_one_instruction(lanes, "wmma");
    const Fragment& first = lanes.of<Fragment>(0);
    each_lane(kAllLanes, [&](u32 lane) {
        const Fragment& mine = lanes.of<Fragment>(lane);
        if (mine.address != first.address || mine.stride != first.stride) {
            fail("warp operation", "lanes of one warp bring different matrices to wmma, " + where(lanes.site(lane)) + ", " + who(lanes.thread(lane)));
        }
        const FragmentForm& form = mine.form;
        const u32 bytes = bits_of(form.kind) / 8;
        each_slot(lane, form.rows * form.columns, form.registers, form.kind, [&](u32 word, u32 shift, u32 element) {
            u32 row = element / form.columns, column = element % form.columns;
            u64 place = form.by_rows ? static_cast<u64>(row) * mine.stride + column : static_cast<u64>(column) * mine.stride + row;
            u64 address = mine.address + place * bytes;
            if (mine.load) {
                u64 raw = 0;
                memcpy(&raw, reach_in(lanes.thread(lane), mine.space, address, bytes, kRead, lanes.site(lane), nullptr), bytes);
                set_part(mine.registers + word, shift, form.kind, raw);
            } else if (lane * (form.registers * 32 / bits_of(form.kind)) < form.rows * form.columns) {
                u64 raw = part_of(mine.registers + word, shift, form.kind);
                memcpy(reach_in(lanes.thread(lane), mine.space, address, bytes, kWrite, lanes.site(lane), &raw), &raw, bytes);
            }
        });
    });
}
const Operation kAccess{"wmma.load or wmma.store", perform_access, true};

struct Product {
    ProductForm form;
    u32* d;
    const u32 *a, *b, *c;
};

void perform_product(const Lanes& lanes) {
    require_one_instruction(lanes, "wmma.mma");
    const ProductForm form = lanes.of<Product>(0).form;
    std::vector<f64> a(form.m * form.k), b(form.k * form.n), sums(form.m * form.n);
    auto gather = [&](std::vector<f64>& into, u32 which, auto registers) {
        const Kind kind = form.kinds[which];
        each_lane(kAllLanes, [&](u32 lane) {
            const u32* words = registers(lanes.of<Product>(lane));
            each_slot(lane, static_cast<u32>(into.size()), form.registers[which], kind, [&](u32 word, u32 shift, u32 element) {
                into[element] = number(kind, part_of(words + word, shift, kind));
            });
        });
    };
    gather(a, 1, [](const Product& p) { return p.a; });
    gather(b, 2, [](const Product& p) { return p.b; });
    gather(sums, 3, [](const Product& p) { return p.c; });
    for (u32 i = 0; i < form.m; i++) {
        for (u32 j = 0; j < form.n; j++) {
            f64& sum = sums[i * form.n + j];
            for (u32 k = 0; k < form.k; k++) sum = __builtin_fma(a[i * form.k + k], b[k * form.n + j], sum);
        }
    }
    each_lane(kAllLanes, [&](u32 lane) {
        u32* words = lanes.of<Product>(lane).d;
        each_slot(lane, form.m * form.n, form.registers[0], form.kinds[0], [&](u32 word, u32 shift, u32 element) {
            set_part(words + word, shift, form.kinds[0], raw_of(form.kinds[0], sums[element], form.saturate));
        });
    });
}
const Operation kProduct{"wmma.mma", perform_product, true};

}  // namespace

void fragment_access(Thread& self, FragmentForm form, bool load, u32* registers, u64 address, u32 stride, Space space, Site site) {
    Fragment mine{form, load, registers, address, stride, space};
    collective(self, kAccess, kAllLanes, &mine, site);
}

void fragment_product(Thread& self, ProductForm form, u32* d, const u32* a, const u32* b, const u32* c, Site site) {
    Product mine{form, d, a, b, c};
    collective(self, kProduct, kAllLanes, &mine, site);
}

}  // namespace sim
