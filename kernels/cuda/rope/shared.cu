#include "common/packed.cuh"

// A thread has one pack after the other of HEADS heads, `groups` apart, of one token of sequence blockIdx.z.
// Neighbouring threads have neighbouring packs, and then neighbouring heads.
struct Place {
    int token, head;
};

__device__ Place place_of_thread() {
    return {int(blockIdx.x * blockDim.z + threadIdx.z), int(blockIdx.y * blockDim.y + threadIdx.y)};
}

// a pack of pairs that lie side by side: N elements, or two by two accesses where N is 1
template <int N>
constexpr int PAIRED = N > 1 ? N : 2;

template <int N, typename T>
__device__ Packed<T, PAIRED<N>> load_pairs(const T* from) {
    if constexpr (N > 1) return load<N>(from);
    else return {from[0], from[1]};
}

template <int N, typename T>
__device__ void store_pairs(T* to, const Packed<float, PAIRED<N>>& pairs) {
    if constexpr (N > 1) {
        store_floats(to, pairs);
    } else {
        to[0] = from_float<T>(pairs[0]);
        to[1] = from_float<T>(pairs[1]);
    }
}

// a, b = a cos - b sin, a sin + b cos for each pair (2i, 2i + 1) of the first R of H heads; `sign` turns the other way
template <typename T, int N, int HEADS>
__global__ void rope_interleaved(T* x, const long long* start, const float* cos, const float* sin, int length, int H,
                                 int R, int HS, int groups, int packs, float sign) {
    constexpr int PAIRS = PAIRED<N> / 2;
    auto [token, head] = place_of_thread();
    if (token >= length) return;
    T* heads = x + (((long long)blockIdx.z * length + token) * H + head) * HS;
    long long step = (long long)groups * HS, row = (start[blockIdx.z] + token) * (HS / 2);
    for (int pack = threadIdx.x; pack < packs; pack += blockDim.x) {
        T* first = heads + pack * PAIRED<N>;
        Packed<T, PAIRED<N>> loaded[HEADS];
#pragma unroll
        for (int k = 0; k < HEADS; k++)
            if (head + k * groups < R) loaded[k] = load_pairs<N>(first + k * step);
        Packed<float, PAIRS> c = load<PAIRS>(cos + row + pack * PAIRS), s = load<PAIRS>(sin + row + pack * PAIRS);
#pragma unroll
        for (int k = 0; k < HEADS; k++) {
            if (head + k * groups >= R) continue;
            Packed<float, PAIRED<N>> values = to_floats(loaded[k]), turned;
#pragma unroll
            for (int j = 0; j < PAIRS; j++) {
                float a = values[2 * j], b = values[2 * j + 1], signed_s = sign * s[j];
                turned[2 * j] = a * c[j] - b * signed_s;
                turned[2 * j + 1] = a * signed_s + b * c[j];
            }
            store_pairs<N>(first + k * step, turned);
        }
    }
}

// The same for each pair (i, i + HS/2): a pack is N neighbours of the first half of a head, and their partners
template <typename T, int N, int HEADS>
__global__ void rope_halves(T* x, const long long* start, const float* cos, const float* sin, int length, int H, int R,
                            int HS, int groups, int packs, float sign) {
    auto [token, head] = place_of_thread();
    if (token >= length) return;
    int half = HS / 2;
    T* heads = x + (((long long)blockIdx.z * length + token) * H + head) * HS;
    long long step = (long long)groups * HS, row = (start[blockIdx.z] + token) * half;
    for (int pack = threadIdx.x; pack < packs; pack += blockDim.x) {
        T* first = heads + pack * N;
        Packed<T, N> a[HEADS], b[HEADS];
#pragma unroll
        for (int k = 0; k < HEADS; k++) {
            if (head + k * groups >= R) continue;
            a[k] = load<N>(first + k * step);
            b[k] = load<N>(first + k * step + half);
        }
        Packed<float, N> c = load<N>(cos + row + pack * N), s = load<N>(sin + row + pack * N);
#pragma unroll
        for (int k = 0; k < HEADS; k++) {
            if (head + k * groups >= R) continue;
            Packed<float, N> u = to_floats(a[k]), v = to_floats(b[k]), first_turned, second_turned;
#pragma unroll
            for (int j = 0; j < N; j++) {
                float signed_s = sign * s[j];
                first_turned[j] = u[j] * c[j] - v[j] * signed_s;
                second_turned[j] = u[j] * signed_s + v[j] * c[j];
            }
            store_floats(first + k * step, first_turned);
            store_floats(first + k * step + half, second_turned);
        }
    }
}
