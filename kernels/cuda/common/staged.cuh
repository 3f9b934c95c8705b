// A warp's part of a result on its way through shared memory: from the lanes that a tensor core leaves the sums in, two
// neighbours each, to lanes with N neighbours, whose accesses of global memory are whole sectors.
//
//     staged.put(i * 16, j * 8, sums[i][j]);    // for all i and j
//     __syncwarp();
//     staged.visit<N>([&](int row, int column, Packed<float, N> values) { … });
#pragma once

#include "common/packed.cuh"
#include "common/reduce.cuh"

template <int ROWS, int COLUMNS>
struct Staged {
    // 8 floats more than a row has: the 4 rows that half a warp puts 8 bytes into begin in different banks.
    alignas(16) float at[ROWS][COLUMNS + 8];

    // Quads of columns in every other 32 change places in pairs: 8 lanes that read every second quad meet in no bank.
    __device__ static int place(int column) { return column ^ column / 32 % 2 * 4; }

    // The 16 x 8 sums of multiply_add (matrix.cuh), at this row and column of the part.
    __device__ void put(int row, int column, const float (&sums)[4]) {
        int r = row + lane_id() / 4, c = place(column + lane_id() % 4 * 2);
        store(&at[r][c], Packed<float, 2>{sums[0], sums[1]});
        store(&at[r + 8][c], Packed<float, 2>{sums[2], sums[3]});
    }

    // f(row, column, values) for N neighbours at a time, in the order of rows; N is a power of two up to 8.
    template <int N, typename F>
    __device__ void visit(F f) const {
        constexpr int EACH = N < 4 ? N : 4;
#pragma unroll 4
        for (int first = 0; first < ROWS * COLUMNS; first += WARP * N) {
            int row = (first + lane_id() * N) / COLUMNS, column = (first + lane_id() * N) % COLUMNS;
            Packed<float, N> values;
#pragma unroll
            for (int k = 0; k < N; k += EACH) {
                Packed<float, EACH> some = load<EACH>(&at[row][place(column + k)]);
#pragma unroll
                for (int e = 0; e < EACH; e++) values[k + e] = some[e];
            }
            f(row, column, values);
        }
    }
};
