#include "common.hpp"

// scale = max|x| / 127 of each group along a row (1 of zeros, NaN where one is not finite); q = x / scale, to even
EXPORT void q8_quantise_forward(const T* x, int8_t* q, float* scales, int64_t M, int64_t K, int64_t G) {
    for (int64_t m = 0; m < M; m++)
        for (int64_t start = 0; start < K; start += G) {
            int64_t stop = start + G < K ? start + G : K;
            float largest = 0;
            bool finite = true;
            for (int64_t k = start; k < stop; k++) {
                float value = load(x + m * K + k);
                finite = finite && std::isfinite(value);
                largest = std::fmax(largest, std::fabs(value));
            }
            float scale = !finite ? std::numeric_limits<float>::quiet_NaN() : largest == 0 ? 1 : largest / 127;
            *scales++ = scale;
            for (int64_t k = start; k < stop; k++)
                q[m * K + k] = finite ? int8_t(std::nearbyint(load(x + m * K + k) / scale)) : 0;
        }
}
