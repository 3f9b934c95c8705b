// Tensor cores as kernels see them: ldmatrix, stmatrix and mma.sync (PTX ISA 9.7.14).
#pragma once
#include "arithmetic.hpp"
#include "memory.hpp"

namespace sim {

// What the 32-bit words of A and B hold: four bytes, two halves, or one f32 of which the tensor core looks at 19 bits.
enum class Element : u32 { F16, Bf16, Tf32, S8, U8, E4m3, E5m2 };

constexpr u32 per_word(Element element) {
    return element == Element::Tf32 ? 1 : element == Element::F16 || element == Element::Bf16 ? 2 : 4;
}

inline f32 decode(Element element, u32 word, u32 part) {
    if (element == Element::Tf32) return bits<f32>(word & 0xffffe000u);
    if (per_word(element) == 4) {
        const u8 byte = static_cast<u8>(word >> 8 * part);
        if (element == Element::S8) return static_cast<f32>(static_cast<s8>(byte));
        if (element == Element::U8) return static_cast<f32>(byte);
        return static_cast<f32>(element == Element::E4m3 ? E4m3::decode(byte) : E5m2::decode(byte));
    }
    u16 half = part ? high(word) : low(word);
    return element == Element::F16 ? F16::decode(half) : Bf16::decode(half);
}

// What C and D hold. Integers wrap, or stay at their ends where the instruction says .satfinite.
enum class Sums : u32 { F32, F16, S32, S32Saturated };

inline u32 whole_sum(Sums sums, f64 exact) {  // of less than 2^53, so that it is exact
    constexpr f64 kLeast = -2147483648.0, kMost = 2147483647.0;
    if (sums == Sums::S32Saturated) exact = exact < kLeast ? kLeast : exact > kMost ? kMost : exact;
    return static_cast<u32>(static_cast<s64>(exact));
}

// `words` is how many 32-bit words of K a row of A has; A has 16 rows, or 8.
struct MmaForm {
    Element a, b;
    u32 words, rows;
    Sums sums;
};
void mma(Thread& self, MmaForm form, u32* d, const u32* a, const u32* b, const u32* c, Site site);
// The same of doubles, of which a row of A has `k`.
void mma_doubles(Thread& self, u32 rows, u32 k, f64* d, const f64* a, const f64* b, const f64* c, Site site);

// Eight by eight matrices of 16-bit elements; lane 8j + i brings the address of row i of matrix j.
template <Space S>
inline u64 row_address(Thread& self, u64 address) {
    return S == Space::Generic ? generic_to_shared(self, address) : address;
}
void load_matrices(Thread& self, u32* d, u32 count, bool transposed, u64 address, Site site);
void store_matrices(Thread& self, const u32* values, u32 count, bool transposed, u64 address, Site site);

}  // namespace sim
