// The order in which a tile's 16-byte pieces lie in shared memory, so that what a warp reads or copies at once meets in
// no bank: 8 lines at the same piece, as ldmatrix wants them, or the neighbouring pieces of one line.
//
// Shared memory has 32 banks of 4 bytes, so that 8 pieces fill them once (CUDA C++ Programming Guide, "Shared Memory").
// Lines follow one another without a gap; the number of a piece is xored with one that tells those lines apart that
// begin in the same bank.
#pragma once

constexpr int PIECE_BYTES = 16;

// Pieces of a line that change places with one another: the largest power of two, up to 8, that divides PIECES.
template <int PIECES>
constexpr int EXCHANGED = PIECES % 8 == 0 ? 8 : PIECES % 4 == 0 ? 4 : PIECES % 2 == 0 ? 2 : 1;

// Where piece `piece` of line `line` lies, counted in pieces; a line has PIECES of them. With 8 pieces in a line this
// is the pattern of TMA and wgmma in lines of 128 bytes: PTX ISA, "Swizzling Modes". The tile is aligned to 128 bytes.
template <int PIECES>
__device__ int swizzled(int line, int piece) {
    return line * PIECES + (piece ^ line / (8 / EXCHANGED<PIECES>) % EXCHANGED<PIECES>);
}

// From the address of a piece to that of the piece `further` pieces on in the same line, which is one instruction where
// `further` is a constant: no bit of it may be set in the number of the first, such as 2, 4, 6, … after piece 0 or 1.
template <int PIECES>
__device__ unsigned piece_further(unsigned address, int further) {
    constexpr int BLOCK = EXCHANGED<PIECES>;
    return (address ^ further % BLOCK * PIECE_BYTES) + further / BLOCK * BLOCK * PIECE_BYTES;
}
