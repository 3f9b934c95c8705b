// What every C++ kernel shares: the storage type T, sixteen-lane vectors, and exp on them.
//
// T is `float` or `bf16`, chosen when the file is compiled (-DT_FP32 or -DT_BF16); arithmetic is always fp32.
// A `vec` is sixteen floats in the compiler's own vector type: one AVX-512 register, or two of AVX2, or four of
// NEON, from the same source. Intrinsics appear only where the compiler does not find the instruction by itself.
#pragma once

#include <omp.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define EXPORT extern "C"
#define INLINE static inline __attribute__((always_inline))
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // every function that takes a vec is inlined: it has no ABI
#endif

struct bf16 {
    uint16_t bits;
};
#if defined(T_BF16)
using T = bf16;
#else
using T = float;
#endif

// ---- one value ------------------------------------------------------------------------------------------------

INLINE float load(const float* p) { return *p; }
INLINE void store(float* p, float value) { *p = value; }

INLINE float load(const bf16* p) {
    uint32_t bits = uint32_t(p->bits) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Rounds to the nearest bf16, ties to even; a NaN stays a NaN, made quiet so that its payload cannot vanish.
INLINE void store(bf16* p, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bool nan = value != value;
    p->bits = uint16_t(nan ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// ---- sixteen values -------------------------------------------------------------------------------------------

constexpr int64_t VEC = 16;
typedef float vec __attribute__((vector_size(64)));
typedef int32_t ivec __attribute__((vector_size(64)));
typedef uint32_t uvec __attribute__((vector_size(64)));
typedef uint16_t hvec __attribute__((vector_size(32)));  // sixteen bf16 as they lie in memory
typedef float vec8 __attribute__((vector_size(32)));
typedef float vec4 __attribute__((vector_size(16)));

INLINE vec splat(float value) { return value - vec{}; }  // not vec{} + value, which turns -0 into 0

INLINE vec widen(hvec h) {
#if defined(__AVX512F__)
    return (vec)((uvec)_mm512_cvtepu16_epi32((__m256i)h) << 16);  // gcc makes the conversion below out of halves
#else
    return (vec)(__builtin_convertvector(h, uvec) << 16);
#endif
}

// The instruction, where there is one, also turns subnormal values into zero; the integer form does not.
INLINE hvec narrow(vec v) {
#if defined(__AVX512BF16__)
    return (hvec)_mm512_cvtneps_pbh((__m512)v);
#else
    uvec bits = (uvec)v;
    uvec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    uvec nan = (uvec)(v != v);
    return __builtin_convertvector((rounded & ~nan) | (((bits >> 16) | 0x40) & nan), hvec);
#endif
}

INLINE vec load16(const float* p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE vec load16(const bf16* p) {
    hvec h;
    memcpy(&h, p, sizeof h);
    return widen(h);
}
INLINE void store16(float* p, vec v) { memcpy(p, &v, sizeof v); }
INLINE void store16(bf16* p, vec v) {
    hvec h = narrow(v);
    memcpy(p, &h, sizeof h);
}

// The first n of sixteen values (0 <= n <= 16); the other lanes are zero. Nothing past p[n - 1] is touched.
INLINE vec load_part(const float* p, int64_t n) {
    if (n == VEC) return load16(p);
#if defined(__AVX512F__)
    return (vec)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
#else
    vec v = {};
    memcpy(&v, p, n * sizeof *p);
    return v;
#endif
}
INLINE vec load_part(const bf16* p, int64_t n) {
    if (n == VEC) return load16(p);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    return widen((hvec)_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p));
#else
    hvec h = {};
    memcpy(&h, p, n * sizeof *p);
    return widen(h);
#endif
}
INLINE void store_part(float* p, vec v, int64_t n) {
    if (n == VEC) return store16(p, v);
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
#else
    memcpy(p, &v, n * sizeof *p);
#endif
}
INLINE void store_part(bf16* p, vec v, int64_t n) {
    if (n == VEC) return store16(p, v);
    hvec h = narrow(v);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), (__m256i)h);
#else
    memcpy(p, &h, n * sizeof *p);
#endif
}

// a where lane < n, else b.
INLINE vec select_part(int64_t n, vec a, vec b) {
    if (n == VEC) return a;
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return lane < int32_t(n) ? a : b;
}

// Calls f(i, n, k) for each vector of a row: it starts at i and has n lanes, n == VEC but at the end. k is which of
// four accumulators to add into: four sums in flight hide the latency of an addition.
constexpr int64_t CHAINS = 4;
template <class F>
INLINE __attribute__((flatten)) void for_vectors(int64_t length, F f) {
    int64_t i = 0;
    for (; i + CHAINS * VEC <= length; i += CHAINS * VEC) {
        f(i, VEC, 0);
        f(i + VEC, VEC, 1);
        f(i + 2 * VEC, VEC, 2);
        f(i + 3 * VEC, VEC, 3);
    }
    for (; i + VEC <= length; i += VEC) f(i, VEC, 0);
    if (i < length) f(i, length - i, 0);
}

// As the instruction: where either is NaN, the result is b.
INLINE vec max16(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
}
INLINE vec min16(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return a < b ? a : b;
#endif
}

// Whether a > b in any lane.
INLINE bool any_above(vec a, vec b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
#else
    ivec above = a > b;
    int32_t any = 0;
    for (int64_t i = 0; i < VEC; i++) any |= above[i];
    return any;
#endif
}

// 1 / v, to about one unit in the last place, for 2^-126 <= |v| <= 2^126.
INLINE vec reciprocal16(vec v) {
#if defined(__AVX512F__)
    vec r = (vec)_mm512_rcp14_ps((__m512)v);  // fourteen bits, and one step of Newton's method for the rest
    return r * (2.0f - v * r);
#else
    return 1.0f / v;
#endif
}

INLINE vec sqrt16(vec v) {
#if defined(__AVX512F__)
    return (vec)_mm512_sqrt_ps((__m512)v);
#else
    for (int64_t i = 0; i < VEC; i++) v[i] = std::sqrt(v[i]);
    return v;
#endif
}

// Sum and maximum of the sixteen lanes, always paired in the same order.
INLINE float hsum(vec v) {
    vec8 halves[2];
    memcpy(halves, &v, sizeof v);
    vec8 eight = halves[0] + halves[1];
    vec4 quarters[2];
    memcpy(quarters, &eight, sizeof eight);
    vec4 four = quarters[0] + quarters[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}
INLINE float hsum(const vec (&v)[CHAINS]) { return hsum((v[0] + v[1]) + (v[2] + v[3])); }
INLINE float hmax(vec v) {
    vec8 halves[2];
    memcpy(halves, &v, sizeof v);
    vec8 eight = halves[0] > halves[1] ? halves[0] : halves[1];
    vec4 quarters[2];
    memcpy(quarters, &eight, sizeof eight);
    vec4 four = quarters[0] > quarters[1] ? quarters[0] : quarters[1];
    float a = four[0] > four[2] ? four[0] : four[2], b = four[1] > four[3] ? four[1] : four[3];
    return a > b ? a : b;
}

// Asks for the cache line at p; past the end of an array it asks in vain, which is harmless.
INLINE void prefetch(const void* p) { __builtin_prefetch(p); }

// ---- stores that go past the caches ---------------------------------------------------------------------------

// An ordinary store first reads the line it is about to overwrite; a streaming store does not, and so saves a third
// of the traffic of a copy. But the consumer then finds nothing in the cache, so it pays only where the output is too
// large to stay there. Measured on two Zen 5 cores with 32 MB of L3: at 3 MB a streamed copy plus a read of it takes as
// long as an ordinary copy plus that read, at 12 MB it is 8% faster. (The size is fixed because the C library's
// answer for the cache is not: it said 384 MB there.) The pointer must be aligned to a whole vector.
constexpr int64_t STREAM_FROM = 8 << 20;  // bytes

INLINE bool worth_streaming(const void* p, int64_t bytes) {
    return bytes >= STREAM_FROM && uintptr_t(p) % sizeof(vec) == 0;
}

// store_part, streaming if asked to.
template <bool STREAM>
INLINE void put_part(float* p, vec v, int64_t n) {
#if defined(__AVX512F__)
    if (STREAM && n == VEC) return _mm512_stream_ps(p, (__m512)v);
#endif
    store_part(p, v, n);
}
template <bool STREAM>
INLINE void put_part(bf16* p, vec v, int64_t n) {
#if defined(__AVX512F__)
    if (STREAM && n == VEC) return _mm256_stream_si256((__m256i*)p, (__m256i)narrow(v));
#endif
    store_part(p, v, n);
}

// Each thread calls it after its last streaming store, so that the others see them.
INLINE void stream_fence() {
#if defined(__AVX512F__)
    _mm_sfence();
#endif
}

// ---- exp ------------------------------------------------------------------------------------------------------

constexpr float LOG2E = 0x1.715476p+0f;

// The whole number nearest to x, for |x| < 2^22.
INLINE vec round16(vec x) {
#if defined(__AVX512F__)
    return (vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#else
    return x + 12582912.0f - 12582912.0f;  // 1.5 * 2^23 has no bits left for a fraction
#endif
}

// v * 2^n, n a whole number in [-152, 128]; right for subnormal results and for overflow.
INLINE vec scale16(vec v, vec n) {
#if defined(__AVX512F__)
    return (vec)_mm512_scalef_ps((__m512)v, (__m512)n);
#else
    ivec whole = __builtin_convertvector(n, ivec), half = whole >> 1;
    return v * (vec)((half + 127) << 23) * (vec)((whole - half + 127) << 23);
#endif
}

// e^x to about one unit in the last place: 0 at -inf, inf from 88.73 on, subnormal results included, NaN kept.
INLINE vec exp16(vec x) {
    x = max16(splat(-105.0f), min16(splat(89.0f), x));
    vec n = round16(x * LOG2E);
    // x = n ln2 + r; ln2 comes in two parts, the first with so few bits that its product with n is exact
    vec r = x - n * 0.693359375f - n * -2.12194440e-4f;
    vec p = r * 0x1.6a1f62p-10f + 0x1.123cccp-7f;  // own fit, relative error below 4e-9
    p = p * r + 0x1.555904p-5f;
    p = p * r + 0x1.55548ep-3f;
    p = p * r + 0x1.fffffcp-2f;
    return scale16(1.0f + (r + r * r * p), n);
}

// 2^x, for x up to 127: a third cheaper than exp16, for sums of exponentials: 2^((x - max) LOG2E). By itself it errs by
// two units in the last place at most; the rounding of that product adds a relative error of |x| 2^-24, which matters
// only where e^x is tiny.
INLINE vec exp2_16(vec x) {
    x = max16(splat(-152.0f), x);  // 0 from here on, and -inf - -inf would be NaN
    vec n = round16(x);
    vec f = x - n;
    vec f2 = f * f;  // own fit, relative error 2e-9; in pairs, as a chain of six would be twice as long a wait
    vec p = f * 0x1.41fa9ep-13f + 0x1.5f400ep-10f;
    p = p * f2 + (f * 0x1.3b2d52p-7f + 0x1.c6aee6p-5f);
    p = p * f2 + (f * 0x1.ebfbdcp-3f + 0x1.62e43p-1f);
    return scale16(p * f + 1.0f, n);
}
