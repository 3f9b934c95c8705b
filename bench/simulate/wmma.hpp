// Fragments as kernels see them: wmma.load, wmma.mma and wmma.store (PTX ISA 9.7.14).
#pragma once
#include "memory.hpp"

namespace sim {

enum class Kind : u32 { F16, Bf16, Tf32, F32, S8, U8, S32, F64 };

// A matrix of which each lane has `registers` words (a double takes two): rows lie behind each other in memory where `by_rows` says so.
struct FragmentForm {
    u32 rows, columns;
    bool by_rows;
    Kind kind;
    u32 registers;
};
void fragment_access(Thread& self, FragmentForm form, bool load, u32* registers, u64 address, u32 stride, Space space, Site site);

// D = A B + C; kinds and registers of D, A, B and C.
struct ProductForm {
    u32 m, n, k;
    Kind kinds[4];
    u32 registers[4];
    bool saturate;  // integers stay at their ends
};
void fragment_product(Thread& self, ProductForm form, u32* d, const u32* a, const u32* b, const u32* c, Site site);

}  // namespace sim
