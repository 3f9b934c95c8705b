#include "common/gelu.cuh"
#include "common/packed.cuh"
#include "common/reduce.cuh"

constexpr int TILE = 128;     // rows, and columns, of the result that a block works out
constexpr int THREADS = 256;  // of a block; each has TILE * TILE / THREADS = 8 x 8 of the result in registers
constexpr int STRIP = 8;      // tiles, one above the other, that are numbered before those in the next column

// How much of the inner dimension, the one summed over, is in shared memory at a time: what a sector of memory holds.
template <typename T>
constexpr int DEPTH = 32 / sizeof(T);

// In fp32, after every CHAIN products the sums in registers join totals in shared memory, and begin anew: the rounding
// errors of one chain of K additions would be several times those of a library. bf16 results have no use for that.
constexpr int CHAIN = 128;
template <typename T>
constexpr bool CHAINED = sizeof(T) == 4;

// A thread's 8 x 8 results are four quads of 4 x 4, half a tile apart. A block's 8 warps lie 2 x 4 over a quarter of
// the tile and a warp's lanes 8 x 4 over its 32 x 16: together they read 32 neighbouring floats of a, and 16 of b.
constexpr int QUAD = 4;
constexpr int HALF = TILE / 2;

__device__ inline int thread_row() { return (warp_id() / 4 * 8 + lane_id() / 4) * QUAD; }
__device__ inline int thread_column() { return (warp_id() % 4 * 4 + lane_id() % 4) * QUAD; }

// A tile of an operand in shared memory: [inner index][outer index, in another order].
template <int INNERS>
using Tile = float[INNERS][TILE];

template <int N>
__device__ Packed<float, N> operator+(Packed<float, N> a, const Packed<float, N>& b) {
#pragma unroll
    for (int k = 0; k < N; k++) a[k] += b[k];
    return a;
}

// Where the outer index o lies in row i of a tile. Every QUAD rows the order turns: then all that a warp stores at once
// of an operand that lies along the inner dimension, TURNS quads of it from WARP / TURNS rows, meets in no bank.
template <int INNERS>
__device__ int turned(int o, int i) {
    constexpr int TURNS = INNERS / QUAD;
    return o ^ (i / QUAD % TURNS * (WARP / TURNS));
}

// One operand of a product, as this thread carries its share of it to shared memory. `outer` counts the rows or columns
// of the result, `inner` what is summed over; ALONG_INNER says which of them is contiguous. N elements an access, and N
// divides the contiguous dimension. fetch and put are apart, so that the next tile is on its way from memory to
// registers while the one in shared memory is multiplied.
template <typename T, bool ALONG_INNER, int N>
struct Operand {
    static constexpr int INNERS = DEPTH<T>;
    static constexpr bool CHAINS = CHAINED<T>;
    static constexpr int PACKS = TILE * INNERS / THREADS / N;
    static constexpr int ROW_PACKS = (ALONG_INNER ? INNERS : TILE) / N;  // of a tile, in the contiguous direction
    static constexpr int STEP = THREADS / ROW_PACKS;  // from one pack to the next, in the other direction
    const T* next;                                    // the first pack of the next tile
    int outer, inner, outers, inners;                 // where that is, and where the operand ends
    Packed<T, N> packs[PACKS];

    __device__ static int tile_outer() { return ALONG_INNER ? threadIdx.x / ROW_PACKS : threadIdx.x % ROW_PACKS * N; }
    __device__ static int tile_inner() { return ALONG_INNER ? threadIdx.x % ROW_PACKS * N : threadIdx.x / ROW_PACKS; }

    __device__ Operand(const T* data, int outers, int inners, int first_outer, int first_inner)
        : outer(first_outer + tile_outer()), inner(first_inner + tile_inner()), outers(outers), inners(inners) {
        next = data + (ALONG_INNER ? outer * (long long)inners + inner : inner * (long long)outers + outer);
    }

    __device__ void fetch() {
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            bool inside = ALONG_INNER ? outer + p * STEP < outers && inner < inners
                                      : outer < outers && inner + p * STEP < inners;
            const T* from = next + p * STEP * (long long)(ALONG_INNER ? inners : outers);
            packs[p] = inside ? load<N>(from) : from_floats<T>(filled<N>(0));
        }
        next += ALONG_INNER ? INNERS : INNERS * (long long)outers;
        inner += INNERS;
    }

    __device__ void put(Tile<INNERS>& tile) const {
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int o = tile_outer() + (ALONG_INNER ? p * STEP : 0), i = tile_inner() + (ALONG_INNER ? 0 : p * STEP);
            Packed<float, N> values = to_floats(packs[p]);
            if constexpr (ALONG_INNER) {
#pragma unroll
                for (int k = 0; k < N; k++) tile[i + k][turned<INNERS>(o, i + k)] = values[k];
            } else {
                store(&tile[i][turned<INNERS>(o, i)], values);
            }
        }
    }
};

// The 8 x 8 results of a thread.
struct Results {
    alignas(16) float at[2 * QUAD][2 * QUAD] = {};

    template <int INNERS>
    __device__ void add_products(const Tile<INNERS>& a, const Tile<INNERS>& b) {
#pragma unroll 2  // all four of bf16 at once would spill registers
        for (int turn = 0; turn < INNERS; turn += QUAD) {  // in which the order is the same
            const float* a_quad = &a[turn][turned<INNERS>(thread_row(), turn)];
            const float* b_quad = &b[turn][turned<INNERS>(thread_column(), turn)];
#pragma unroll
            for (int i = 0; i < QUAD; i++) {
                Packed<float, QUAD> rows[2], columns[2];
#pragma unroll
                for (int q = 0; q < 2; q++) {
                    rows[q] = load<QUAD>(a_quad + i * TILE + q * HALF);
                    columns[q] = load<QUAD>(b_quad + i * TILE + q * HALF);
                }
#pragma unroll
                for (int r = 0; r < 2 * QUAD; r++)
#pragma unroll
                    for (int c = 0; c < 2 * QUAD; c++)
                        at[r][c] += rows[r / QUAD][r % QUAD] * columns[c / QUAD][c % QUAD];
            }
        }
    }

    // f(quad's number, quad) for all quads of this thread.
    template <typename F>
    __device__ void each_quad(F f) {
#pragma unroll
        for (int r = 0; r < 2 * QUAD; r++)
#pragma unroll
            for (int c = 0; c < 2; c++) f(r * 2 + c, *reinterpret_cast<Packed<float, QUAD>*>(&at[r][c * QUAD]));
    }

    // f(row, column, values) for N neighbouring results at a time that lie inside rows x columns.
    template <int N, typename F>
    __device__ void visit(int first_row, int first_column, int rows, int columns, F f) const {
#pragma unroll
        for (int r = 0; r < 2 * QUAD; r++)
#pragma unroll
            for (int c = 0; c < 2 * QUAD; c += N) {
                int row = first_row + thread_row() + r / QUAD * HALF + r % QUAD;
                int column = first_column + thread_column() + c / QUAD * HALF + c % QUAD;
                Packed<float, N> values;
#pragma unroll
                for (int k = 0; k < N; k++) values[k] = at[r][c + k];
                if (row < rows && column < columns) f(row, column, values);
            }
    }
};

// sum over i in [begin, end) of a(row, i) b(column, i), for the tile of the result where a and b begin. Two pairs of
// tiles in shared memory: one is filled while the other is read, with one barrier a step. Where more than CHAIN
// products are CHAINED, the launch must bring TILE * TILE floats of dynamic shared memory.
template <typename A, typename B>
__device__ Results product(A a, B b, int begin, int end) {
    constexpr int INNERS = A::INNERS;
    __shared__ alignas(16) Tile<INNERS> a_tiles[2], b_tiles[2];
    extern __shared__ Packed<float, QUAD> totals[];  // [quad][thread]
    Packed<float, QUAD>* own = totals + threadIdx.x;
    const bool chained = A::CHAINS && end - begin > CHAIN;
    Results results;
    if (chained)
        results.each_quad([&](int number, Packed<float, QUAD>&) { own[number * THREADS] = filled<QUAD>(0); });
    a.fetch();
    b.fetch();
    a.put(a_tiles[0]);
    b.put(b_tiles[0]);
    __syncthreads();
    for (int i = begin, now = 0; i < end; i += INNERS, now ^= 1) {
        bool more = i + INNERS < end;
        if (more) {
            a.fetch();
            b.fetch();
        }
        results.add_products(a_tiles[now], b_tiles[now]);
        if (chained && more && (i + INNERS - begin) % CHAIN == 0) {
            results.each_quad([&](int number, Packed<float, QUAD>& quad) {
                own[number * THREADS] = own[number * THREADS] + quad;
                quad = filled<QUAD>(0);
            });
        }
        if (more) {
            a.put(a_tiles[now ^ 1]);
            b.put(b_tiles[now ^ 1]);
        }
        __syncthreads();
    }
    if (chained) results.each_quad([&](int number, Packed<float, QUAD>& quad) { quad = quad + own[number * THREADS]; });
    return results;
}

// Which tile of the result this block works on. Blocks that run at the same time have neighbouring numbers: in strips
// of STRIP tiles, 264 of them need the operands of 8 + 33 tiles, which stay in L2.
struct ResultTile {
    int first_row, first_column;

    __device__ ResultTile(int rows, int columns) {
        int tile_rows = (rows + TILE - 1) / TILE, tile_columns = (columns + TILE - 1) / TILE;
        int strip_tiles = STRIP * tile_columns, strip = blockIdx.x / strip_tiles, within = blockIdx.x % strip_tiles;
        int height = min(STRIP, tile_rows - strip * STRIP);
        first_row = (strip * STRIP + within % height) * TILE;
        first_column = within / height * TILE;
    }
};

// out = x weight^T (+ bias). Where pre_gelu is wanted, it is that, and out is its GELU.
template <typename T, int N>
__global__ void __launch_bounds__(THREADS, 2)
    matmul_forward(T* out, T* pre_gelu, const T* x, const T* weight, const T* bias, int rows, int columns, int inners) {
    const ResultTile tile(rows, columns);
    Operand<T, true, N> a(x, rows, inners, tile.first_row, 0), b(weight, columns, inners, tile.first_column, 0);
    Results results = product(a, b, 0, inners);
    results.visit<N>(tile.first_row, tile.first_column, rows, columns, [&](int row, int column, Packed<float, N> v) {
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
template <typename T, int N>
__global__ void __launch_bounds__(THREADS, 2)
    matmul_dx(T* dx, const T* dout, const T* weight, const T* x_pre_gelu, int rows, int columns, int inners) {
    const ResultTile tile(rows, columns);
    Operand<T, true, N> a(dout, rows, inners, tile.first_row, 0);
    Operand<T, false, N> b(weight, columns, inners, tile.first_column, 0);
    Results results = product(a, b, 0, inners);
    results.visit<N>(tile.first_row, tile.first_column, rows, columns, [&](int row, int column, Packed<float, N> v) {
        long long at = row * (long long)columns + column;
        if (x_pre_gelu) {
            Packed<float, N> x = load_floats<N>(x_pre_gelu + at);
#pragma unroll
            for (int k = 0; k < N; k++) v[k] *= gelu_grad(x[k]);
        }
        store_floats(dx + at, v);
    });
}

// dweight = dout^T x, or that added to it. With several parts (gridDim.y), each sums its share of the inner dimension
// into its own array of `partials`, and `add_parts` does the rest.
template <typename T, int N>
__global__ void __launch_bounds__(THREADS, 2)
    matmul_dweight(T* dweight, float* partials, const T* dout, const T* x, int rows, int columns, int inners,
                   int part_inners, bool accumulate) {
    const ResultTile tile(rows, columns);
    const int begin = blockIdx.y * part_inners, end = min(begin + part_inners, inners);
    Operand<T, false, N> a(dout, rows, inners, tile.first_row, begin), b(x, columns, inners, tile.first_column, begin);
    Results results = product(a, b, begin, end);
    if (partials) partials += blockIdx.y * (long long)rows * columns;
    results.visit<N>(tile.first_row, tile.first_column, rows, columns, [&](int row, int column, Packed<float, N> v) {
        long long at = row * (long long)columns + column;
        if (partials) {
            store(partials + at, v);
            return;
        }
        store_floats(dweight + at, accumulate ? v + load_floats<N>(dweight + at) : v);
    });
}

// partials[part][column] = the sum of that part's rows of dout. A warp adds every eighth row, N columns a lane; then
// the first warp adds the warps' sums.
template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    sum_rows(float* partials, const T* dout, int rows, int columns, int part_rows) {
    constexpr int WARPS = THREADS / WARP;
    __shared__ alignas(16) float parts[WARPS][WARP * N];
    const int column = (blockIdx.x * WARP + lane_id()) * N;
    const int begin = blockIdx.y * part_rows, end = min(begin + part_rows, rows);
    Packed<float, N> sums = filled<N>(0);
    if (column < columns)
        for (int row = begin + warp_id(); row < end; row += WARPS)
            sums = sums + load_floats<N>(dout + row * (long long)columns + column);
    store(&parts[warp_id()][lane_id() * N], sums);
    __syncthreads();
    if (warp_id() == 0 && column < columns) {
        for (int w = 1; w < WARPS; w++) sums = sums + load<N>(&parts[w][lane_id() * N]);
        store(partials + blockIdx.y * (long long)columns + column, sums);
    }
}

// result = partials[0] + … + partials[parts - 1], arrays of n, in order; or that added to it.
template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    add_parts(T* result, const float* partials, long long n, int parts, bool accumulate) {
    const long long i = (blockIdx.x * (long long)THREADS + threadIdx.x) * N;
    if (i >= n) return;
    Packed<float, N> sums = filled<N>(0);
    for (int part = 0; part < parts; part++) sums = sums + load_once<N>(partials + part * n + i);
    store_floats(result + i, accumulate ? sums + load_floats<N>(result + i) : sums);
}
