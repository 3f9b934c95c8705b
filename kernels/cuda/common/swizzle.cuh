// Where the 16-byte pieces of a tile lie in shared memory, so that no two lanes meet in a bank, neither where a warp
// writes neighbouring pieces of rows nor where ldmatrix reads one piece each of 8 rows.
//
//     copy_async<16>(tile + swizzled<PIECES>(row, piece) * 8, from);          // 8 elements of 16 bits
//     load_matrices(part, tile + swizzled<PIECES>(row, piece) * 8);
//
// Shared memory has 32 banks of 4 bytes: 8 groups of 16 (CUDA C++ Programming Guide, "Shared Memory"). The rows of a
// tile follow one another without a gap, and the piece's number is xored with one that tells those rows apart that
// begin in the same group.
#pragma once

constexpr int BANK_GROUPS = 8;

// The largest power of two, up to BANK_GROUPS, that divides x.
constexpr int group_factor(int x) { return x % 8 == 0 ? 8 : x % 4 == 0 ? 4 : x % 2 == 0 ? 2 : 1; }

// The place, counted in pieces, of a piece of a row. A row has PIECES of them; the tile begins at a multiple of 128
// bytes for what is said of the banks, at a multiple of 16 for everything else.
template <int PIECES>
__device__ int swizzled(int row, int piece) {
    constexpr int TURNS = group_factor(PIECES);  // pieces that are exchanged with one another
    return row * PIECES + (piece ^ row / (BANK_GROUPS / TURNS) % TURNS);
}
