#include "common/async_copy.cuh"
#include "common/gelu.cuh"
#include "common/matrix.cuh"
#include "common/packed.cuh"
#include "common/staged.cuh"
#include "common/swizzle.cuh"
#include "common/tile_order.cuh"

constexpr int TILE = 128;     // rows, and columns, of the result that a block works out
constexpr int DEPTH = 64;     // of the inner dimension, the one summed over, in a stage
constexpr int THREADS = 128;  // of a block: 2 x 2 warps, each with PART x PART of the result
constexpr int PART = 64;
constexpr int PIECE = 8;  // elements of 16 bytes
constexpr int STAGE = 2 * TILE * DEPTH;  // elements: a tile of each operand

// An operand is a matrix of rows x columns in memory. `outer` counts the rows or columns of the result, `inner` what is
// summed over; ALONG_INNER says which of them is contiguous. A tile of it in shared memory has lines as the matrix has
// rows, and swizzled pieces. N elements an access, and N divides the columns.
template <typename T, bool ALONG_INNER, int N>
struct Operand {
    static constexpr int WIDTH = ALONG_INNER ? DEPTH : TILE;  // of a line
    static constexpr int LINES = ALONG_INNER ? TILE : DEPTH;
    static constexpr int PIECES = WIDTH / PIECE;
    static constexpr int STEP = THREADS / (WIDTH / N);  // lines from one access of a thread to its next

    const T* next;  // this thread's first element of the next tile
    int row, column, rows, columns;  // where that is, and where the matrix ends

    __device__ static int line() { return threadIdx.x / (WIDTH / N); }
    __device__ static int place() { return threadIdx.x % (WIDTH / N) * N; }

    __device__ Operand(const T* data, int outers, int inners, int first_outer, int first_inner)
        : row((ALONG_INNER ? first_outer : first_inner) + line()),
          column((ALONG_INNER ? first_inner : first_outer) + place()),
          rows(ALONG_INNER ? outers : inners),
          columns(ALONG_INNER ? inners : outers) {
        next = data + row * (long long)columns + column;
    }

    // Starts to copy the next tile; what lies outside of the matrix becomes zero. Single elements are too small for an
    // asynchronous copy: they are there when this returns.
    __device__ void copy(T* tile) {
        const T* from = next;
#pragma unroll 8
        for (int l = 0; l < LINES; l += STEP, from += STEP * (long long)columns) {
            bool inside = row + l < rows && column < columns;
            T* to = tile + swizzled<PIECES>(line() + l, place() / PIECE) * PIECE + place() % PIECE;
            if constexpr (N > 1)
                copy_async_or_zero<N * sizeof(T)>(to, from, inside);
            else
                *to = inside ? *from : from_float<T>(0);
        }
        next += ALONG_INNER ? DEPTH : DEPTH * (long long)columns;
        (ALONG_INNER ? column : row) += DEPTH;
    }

    // 16 of the outer by 16 of the inner dimension, from `outer` and the k-th 16 of the tile on, as four matrices of
    // 8 x 8: INNER_FIRST those of one 8 outer are neighbours, as b of multiply_add has them, else those of one 8 inner.
    template <bool INNER_FIRST>
    __device__ static void load(unsigned (&to)[4], const T* tile, int outer, int k) {
        const int half = lane_id() / 16, quarter = lane_id() / 8 % 2;
        const int inner_half = INNER_FIRST ? quarter : half, outer_half = INNER_FIRST ? half : quarter;
        const int o = outer + outer_half * 8, i = k * 16 + inner_half * 8;
        if constexpr (ALONG_INNER)
            load_matrices(to, tile + swizzled<PIECES>(o + lane_id() % 8, i / PIECE) * PIECE);
        else
            load_matrices_transposed(to, tile + swizzled<PIECES>(i + lane_id() % 8, o / PIECE) * PIECE);
    }
};

// What a warp multiplies at a time: 16 of the inner dimension.
struct Fragments {
    unsigned a[PART / 16][4], b[PART / 16][4];
};

// The PART x PART sums of a warp.
struct Sums {
    float at[PART / 16][PART / 8][4] = {};

    template <typename T>
    __device__ void add_products(const Fragments& f) {
#pragma unroll
        for (int i = 0; i < PART / 16; i++)
#pragma unroll
            for (int j = 0; j < PART / 8; j++) {
                const unsigned pair[2] = {f.b[j / 2][j % 2 * 2], f.b[j / 2][j % 2 * 2 + 1]};
                multiply_add<T>(at[i][j], f.a[i], pair);
            }
    }
};

__device__ inline int part_row() { return warp_id() / 2 * PART; }
__device__ inline int part_column() { return warp_id() % 2 * PART; }

extern __shared__ uint4 shared_memory[];  // STAGES stages, and later the warps' parts of the result

// sums += a(row, i) b(column, i) over `steps` tiles along the inner dimension. STAGES - 1 of them are on their way while
// one is multiplied; the fragments of the next 16 are read from shared memory while those of this 16 are multiplied.
// also(fragments) is called for each 16.
template <int STAGES, typename T, typename A, typename B, typename Also>
__device__ void add_product(Sums& sums, A a, B b, int steps, Also also) {
    constexpr int TURNS = DEPTH / 16;
    T* tiles = reinterpret_cast<T*>(shared_memory);
    auto copy_a = [&](int step) {
        if (step < steps) a.copy(tiles + step % STAGES * STAGE);
    };
    auto copy_b = [&](int step) {
        if (step < steps) b.copy(tiles + step % STAGES * STAGE + TILE * DEPTH);
        close_copies();
    };
    Fragments fragments[2];
    auto load = [&](Fragments& to, int step, int k) {
        const T *a_tile = tiles + step % STAGES * STAGE, *b_tile = a_tile + TILE * DEPTH;
#pragma unroll
        for (int i = 0; i < PART / 16; i++) {
            A::template load<false>(to.a[i], a_tile, part_row() + i * 16, k);
            B::template load<true>(to.b[i], b_tile, part_column() + i * 16, k);
        }
    };
    for (int step = 0; step < STAGES - 1; step++) {
        copy_a(step);
        copy_b(step);
    }
    wait_copies<STAGES - 2>();
    __syncthreads();
    load(fragments[0], 0, 0);
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
#pragma unroll
        for (int k = 0; k < TURNS; k++) {
            if (k + 1 < TURNS) {
                load(fragments[(k + 1) % 2], step, k + 1);
            } else if (step + 1 < steps) {
                wait_copies<STAGES - 2>();
                __syncthreads();  // and all have read this step's tiles
                load(fragments[(k + 1) % 2], step + 1, 0);
            }
            if (k == 0) copy_a(step + STAGES - 1);
            if (k == 1) copy_b(step + STAGES - 1);
            sums.add_products<T>(fragments[k % 2]);
            also(fragments[k % 2]);
        }
    }
    __syncthreads();  // the result may take the tiles' place
}

// f(row, column, values) for N neighbouring results at a time that lie inside rows x columns; the warps go about it on
// their own.
template <int N, typename F>
__device__ void visit(const Sums& sums, TilePlace tile, int rows, int columns, F f) {
    auto& staged = reinterpret_cast<Staged<PART, PART>*>(shared_memory)[warp_id()];
#pragma unroll
    for (int i = 0; i < PART / 16; i++)
#pragma unroll
        for (int j = 0; j < PART / 8; j++) staged.put(i * 16, j * 8, sums.at[i][j]);
    __syncwarp();
    staged.template visit<N>([&](int r, int c, Packed<float, N> values) {
        int row = tile.row + part_row() + r, column = tile.column + part_column() + c;
        if (row < rows && column < columns) f(row, column, values);
    });
}

template <int N>
__device__ Packed<float, N> operator+(Packed<float, N> a, const Packed<float, N>& b) {
#pragma unroll
    for (int k = 0; k < N; k++) a[k] += b[k];
    return a;
}

struct Nothing {
    __device__ void operator()(const Fragments&) const {}
};

// out = x weight^T (+ bias). Where pre_gelu is wanted, it is that, and out is its GELU.
template <typename T, int N, int STAGES>
__global__ void __launch_bounds__(THREADS, 2)
    matmul_forward(T* out, T* pre_gelu, const T* x, const T* weight, const T* bias, int rows, int columns, int inners) {
    const TilePlace tile = tile_place<TILE, TILE>(blockIdx.x, rows, columns);
    Operand<T, true, N> a(x, rows, inners, tile.row, 0), b(weight, columns, inners, tile.column, 0);
    Sums sums;
    add_product<STAGES, T>(sums, a, b, (inners + DEPTH - 1) / DEPTH, Nothing());
    visit<N>(sums, tile, rows, columns, [&](int row, int column, Packed<float, N> v) {
        long long at = row * (long long)columns + column;
        if (bias) v = v + load_floats<N>(bias + column);
        if (pre_gelu) {
            store_floats(pre_gelu + at, v);
#pragma unroll
            for (int k = 0; k < N; k++) v[k] = gelu(v[k]);
        }
        store_floats(out + at, v);
    });
}

// dx = dout weight, times gelu'(x_pre_gelu) where x was the GELU of that.
template <typename T, int N, int STAGES>
__global__ void __launch_bounds__(THREADS, 2)
    matmul_dx(T* dx, const T* dout, const T* weight, const T* x_pre_gelu, int rows, int columns, int inners) {
    const TilePlace tile = tile_place<TILE, TILE>(blockIdx.x, rows, columns);
    Operand<T, true, N> a(dout, rows, inners, tile.row, 0);
    Operand<T, false, N> b(weight, columns, inners, tile.column, 0);
    Sums sums;
    add_product<STAGES, T>(sums, a, b, (inners + DEPTH - 1) / DEPTH, Nothing());
    visit<N>(sums, tile, rows, columns, [&](int row, int column, Packed<float, N> v) {
        long long at = row * (long long)columns + column;
        if (x_pre_gelu) {
            Packed<float, N> x = load_floats<N>(x_pre_gelu + at);
#pragma unroll
            for (int k = 0; k < N; k++) v[k] *= gelu_grad(x[k]);
        }
        store_floats(dx + at, v);
    });
}

// Sums of a's rows over the inner dimension, by tensor cores: a product with a matrix of ones. Of the two warps that
// have the same rows each takes half of them.
template <typename T>
struct RowSums {
    static constexpr int EACH = PART / 16 / 2;
    bool wanted;
    float at[EACH][4] = {};

    __device__ explicit RowSums(bool wanted) : wanted(wanted) {}

    __device__ static int first() { return warp_id() % 2 * EACH; }

    __device__ void operator()(const Fragments& f) {
        if (!wanted) return;
        const T one[2] = {from_float<T>(1), from_float<T>(1)};
        const unsigned both = *reinterpret_cast<const unsigned*>(one), ones[2] = {both, both};
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            unsigned rows[4];
#pragma unroll
            for (int r = 0; r < 4; r++) rows[r] = first() ? f.a[EACH + i][r] : f.a[i][r];
            multiply_add<T>(at[i], rows, ones);
        }
    }

    // to[row], of a result that has `rows` of them. All 8 columns of each product are the same.
    __device__ void write(float* to, int first_row, int rows) const {
        if (!wanted || lane_id() % 4) return;
#pragma unroll
        for (int i = 0; i < EACH; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = first_row + part_row() + (first() + i) * 16 + half * 8 + lane_id() / 4;
                if (row < rows) to[row] = at[i][half * 2];
            }
    }
};

// dweight = dout^T x, or that added to it. With several parts (gridDim.y), each sums its share of the inner dimension
// into its own array of `partials`, and add_parts (shared.cu) does the rest. So it is with dbias, the sums of dout's
// columns: where bias_partials are wanted, the blocks of the first column of tiles have all of dout at hand.
template <typename T, int N, int STAGES>
__global__ void __launch_bounds__(THREADS, 2)
    matmul_dweight(T* dweight, float* partials, float* bias_partials, const T* dout, const T* x, int rows, int columns,
                   int inners, int part_inners, bool accumulate) {
    const TilePlace tile = tile_place<TILE, TILE>(blockIdx.x, rows, columns);
    const int begin = blockIdx.y * part_inners, end = min(begin + part_inners, inners);
    Operand<T, false, N> a(dout, rows, inners, tile.row, begin), b(x, columns, inners, tile.column, begin);
    Sums sums;
    RowSums<T> row_sums(bias_partials && tile.column == 0);
    add_product<STAGES, T>(sums, a, b, (end - begin + DEPTH - 1) / DEPTH, [&](const Fragments& f) { row_sums(f); });
    row_sums.write(bias_partials + blockIdx.y * (long long)rows, tile.row, rows);
    if (partials) {
        constexpr int EACH = N < 4 ? N : 4;
        partials += blockIdx.y * (long long)rows * columns;
        visit<EACH>(sums, tile, rows, columns, [&](int row, int column, Packed<float, EACH> v) {
            store(partials + row * (long long)columns + column, v);
        });
        return;
    }
    visit<N>(sums, tile, rows, columns, [&](int row, int column, Packed<float, N> v) {
        long long at = row * (long long)columns + column;
        store_floats(dweight + at, accumulate ? v + load_floats<N>(dweight + at) : v);
    });
}
