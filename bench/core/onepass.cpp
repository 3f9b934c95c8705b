// What is looked at of a large output in one pass over memory, where PyTorch's operators would take ten.
//
// T is what a call left (float, or bf16 as its 16 bits); Wide, what its truth is kept in and errors are worked out in.
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef T_BF16
using T = uint16_t;
using Wide = float;
inline Wide wide(T x) {
    uint32_t bits = uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
#else
using T = float;
using Wide = double;
inline Wide wide(T x) { return x; }
#endif

extern "C" {

// Squares of errors, each in units of what it may be: share * |truth| + noise (unit: those two).
// count is a multiple of length, a stretch. found: the largest square, the largest sum of a stretch, the sum of all,
// and the largest error as it is. Where anything is not finite, or a square overflows, the sum of all is not finite
// either, and the others mean nothing.
void errors(const T* got, const Wide* truth, const double* unit, double* found, int64_t count, int64_t length) {
    const Wide share = Wide(unit[0]), noise = Wide(unit[1]);
    double total = 0;
    Wide one = 0, most = 0, absolute = 0;
    for (int64_t start = 0; start < count; start += length) {
        const T* g = got + start;
        const Wide* t = truth + start;
        Wide sum = 0;
#pragma omp simd reduction(+ : sum) reduction(max : one, absolute)
        for (int64_t i = 0; i < length; i++) {
            const Wide error = std::fabs(wide(g[i]) - t[i]);
            const Wide units = error / (std::fabs(t[i]) * share + noise);
            const Wide square = units * units;
            sum += square;
            one = one > square ? one : square;
            absolute = absolute > error ? absolute : error;
        }
        most = most > sum ? most : sum;
        total += sum;
    }
    found[0] = one, found[1] = most, found[2] = total, found[3] = absolute;
}

#ifndef T_BF16
// Whether held[i] has the bits of source[i - shift], taken around, times a factor, for each i of [begin, end) of count.
void holds(const float* held, const float* source, const float* factor, int64_t* same, int64_t shift, int64_t begin,
           int64_t end, int64_t count) {
    uint32_t differs = 0;
    for (int64_t i = begin; i < end;) {
        const int64_t from = i < shift ? i - shift + count : i - shift;
        const int64_t stop = i < shift && shift < end ? shift : end;
        const float* a = held + i;
        const float* b = source + from;
#pragma omp simd reduction(| : differs)
        for (int64_t k = 0; k < stop - i; k++) {
            const float made = b[k] * *factor;
            uint32_t x, y;
            std::memcpy(&x, a + k, sizeof x);
            std::memcpy(&y, &made, sizeof y);
            differs |= x ^ y;
        }
        i = stop;
    }
    *same = differs == 0;
}
#endif

}  // extern "C"
