// A row of any length that begins anywhere, by accesses of 16 bytes: its packs are those of the memory that it lies in, so
// that the first and the last may reach over its ends. The tensor itself begins at a multiple of 16 bytes.
//
//     AlignedRow<T> row(r * length);
//     for (int i = threadIdx.x; i < row.packs(length); i += THREADS)
//         row.copy(kept + i, tensor, i, size);              // and close_copies, wait_copies
//     …
//         Packed<float, N> values = to_floats(kept[i]);
//         row.mask(values, i, length, 0);                   // what is not the row's
//         row.store(out, i, length, values);
#pragma once

#include "common/async_copy.cuh"
#include "common/packed.cuh"

template <typename T>
struct AlignedRow {
    static constexpr int N = PACK_BYTES / sizeof(T);
    using Pack = Packed<T, N>;
    long long origin;  // element of the tensor where pack 0 begins
    int before;        // elements of pack 0 that lie before the row

    __device__ explicit AlignedRow(long long begin) : origin(begin / N * N), before(begin % N) {}

    // How many hold any of the first so many columns.
    __device__ int packs(int columns) const { return (before + columns + N - 1) / N; }

    // Where a pack begins; in pack 0 it may be negative.
    __device__ int column(int pack) const { return pack * N - before; }

    __device__ bool whole(int pack, int columns) const { return column(pack) >= 0 && column(pack) + N <= columns; }

    // Asks for a pack of a tensor of `size` elements; what lies beyond it is not read, and comes as zeros. PTX ISA,
    // "Data Movement and Conversion Instructions: cp.async": src-size
    __device__ void copy(Pack* to_shared, const T* tensor, int pack, long long size) const {
        const long long first = origin + pack * (long long)N, left = size - first;
        const int read = left < N ? int(left) * int(sizeof(T)) : PACK_BYTES;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)),
                     "l"(tensor + first), "r"(read)
                     : "memory");
    }

    // Replaces what of a pack lies outside of the first `columns` columns.
    __device__ void mask(Packed<float, N>& values, int pack, int columns, float outside) const {
        if (whole(pack, columns)) return;
        const int first = column(pack);
#pragma unroll
        for (int k = 0; k < N; k++)
            if (first + k < 0 || first + k >= columns) values[k] = outside;
    }

    // Writes what of a pack lies inside of them.
    __device__ void store(T* tensor, int pack, int columns, const Packed<float, N>& values) const {
        T* to = tensor + origin + pack * (long long)N;
        if (whole(pack, columns)) {
            store_floats_once(to, values);
            return;
        }
        const int first = column(pack);
#pragma unroll
        for (int k = 0; k < N; k++)
            if (first + k >= 0 && first + k < columns) to[k] = from_float<T>(values[k]);
    }
};
