// Memory traffic at full speed: what the bandwidth ceilings of bench/machine/ceilings.py are measured with.
//
// Each thread works through one contiguous part of the arrays. n counts floats and is a multiple of BLOCK; the arrays
// are aligned to 64 bytes. Streaming stores go past the caches, so that no line is read only to be overwritten.
#include <cstdint>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#endif

constexpr int64_t BLOCK = 4096;

namespace {
#if defined(__AVX512F__)
inline void stream(float* to, const float* from) { _mm512_stream_ps(to, _mm512_loadu_ps(from)); }
constexpr int WIDTH = 16;
#elif defined(__AVX__)
inline void stream(float* to, const float* from) { _mm256_stream_ps(to, _mm256_loadu_ps(from)); }
constexpr int WIDTH = 8;
#else  // no streaming store that the compilers agree on: a plain one
inline void stream(float* to, const float* from) { std::memcpy(to, from, sizeof(float)); }
constexpr int WIDTH = 1;
#endif
}  // namespace

extern "C" {

// Every byte of a is read; the sum keeps the compiler from leaving the loop out. out: 1 float.
void ceiling_read(float* out, const float* a, int64_t n) {
    uint64_t sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum)
    for (int64_t block = 0; block < n; block += BLOCK) {
        uint64_t part = 0;
        for (int64_t i = 0; i < BLOCK; i += 2) {
            uint64_t bits;
            std::memcpy(&bits, a + block + i, sizeof bits);
            part += bits;
        }
        sum += part;
    }
    *out = float(sum & 0xff);
}

void ceiling_copy(float* out, const float* a, int64_t n) {
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < n; block += BLOCK) {
#pragma omp simd
        for (int64_t i = block; i < block + BLOCK; i++) out[i] = a[i];
    }
}

void ceiling_copy_streaming(float* out, const float* a, int64_t n) {
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < n; block += BLOCK)
        for (int64_t i = block; i < block + BLOCK; i += WIDTH) stream(out + i, a + i);
}

// out = a + scale * b
void ceiling_triad(float* out, const float* a, const float* b, float scale, int64_t n) {
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < n; block += BLOCK) {
#pragma omp simd
        for (int64_t i = block; i < block + BLOCK; i++) out[i] = a[i] + scale * b[i];
    }
}

void ceiling_triad_streaming(float* out, const float* a, const float* b, float scale, int64_t n) {
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < n; block += BLOCK)
        for (int64_t i = block; i < block + BLOCK; i += WIDTH) {
            float values[WIDTH];
            for (int j = 0; j < WIDTH; j++) values[j] = a[i + j] + scale * b[i + j];
            stream(out + i, values);
        }
}
}
