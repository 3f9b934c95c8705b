// Tensor cores as kernels see them: ldmatrix, stmatrix and mma.sync (PTX ISA 9.7.14).
#pragma once
#include "arithmetic.hpp"
#include "memory.hpp"

namespace sim {

// What the 32-bit words of A and B hold: two halves, or one f32 of which the tensor core looks at 19 bits.
enum class Element : u32 { F16, Bf16, Tf32 };

constexpr u32 per_word(Element element) { return element == Element::Tf32 ? 1 : 2; }

inline f32 decode(Element element, u32 word, u32 part) {
    if (element == Element::Tf32) return bits<f32>(word & 0xffffe000u);
    u16 half = part ? high(word) : low(word);
    return element == Element::F16 ? F16::decode(half) : Bf16::decode(half);
}

// `words` is how many 32-bit words of K a row of A has; `half_sums` says that C and D are f16.
struct MmaForm {
    Element element;
    u32 words;
    bool half_sums;
};
void mma(Thread& self, MmaForm form, u32* d, const u32* a, const u32* b, const u32* c, Site site);

// Eight by eight matrices of 16-bit elements; lane 8j + i brings the address of row i of matrix j.
template <Space S>
inline u64 row_address(Thread& self, u64 address) {
    return S == Space::Generic ? generic_to_shared(self, address) : address;
}
void load_matrices(Thread& self, u32* d, u32 count, bool transposed, u64 address, Site site);
void store_matrices(Thread& self, const u32* values, u32 count, bool transposed, u64 address, Site site);

}  // namespace sim
