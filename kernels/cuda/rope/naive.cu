#include "common/types.cuh"

// a, b = a cos - b sin, a sin + b cos for each pair of the first R of H heads; `sign` turns the other way. n pairs, of
// which a head has `half`.
template <typename T>
__global__ void rope(T* x, const long long* start, const float* cos, const float* sin, long long n, int length, int H,
                     int R, int half, bool interleaved, float sign) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= n) return;
    int pair = i % half, h = i / half % R;
    long long row = i / half / R, place = (start[row / length] + row % length) * half + pair;
    T* head = x + (row * H + h) * 2 * half;
    T *first = head + (interleaved ? 2 * pair : pair), *second = head + (interleaved ? 2 * pair + 1 : pair + half);
    float a = to_float(*first), b = to_float(*second), c = cos[place], s = sign * sin[place];
    *first = from_float<T>(a * c - b * s);
    *second = from_float<T>(a * s + b * c);
}
