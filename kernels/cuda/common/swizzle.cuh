// The order in which a tile's 16-byte pieces lie in shared memory, so that what a warp reads or copies at once meets in
// no bank: 8 lines at the same piece, as ldmatrix wants them, or the neighbouring pieces of one line.
#pragma once

constexpr int PIECE_BYTES = 16;

// Where piece `piece` of line `line` lies, counted in pieces; a line has PIECES of them, 8 or a multiple of it. The 8
// pieces of 128 neighbouring bytes change places with the line's number. With 8 pieces in a line this is the pattern of
// TMA and wgmma in lines of 128 bytes: PTX ISA, "Swizzling Modes".
template <int PIECES>
__device__ int swizzled(int line, int piece) {
    static_assert(PIECES % 8 == 0, "the pattern is 128 bytes wide");
    return line * PIECES + (piece ^ line % 8);
}
