#include <algorithm>

#include "common.hpp"

constexpr int64_t BLOCK = 256;  // weights of which one sum is kept
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

struct Candidate {
    float logit, weight;
    int32_t index;
};
struct Scratch {
    float *weights, *maxima;  // V, and one for sixteen logits
    double* sums;             // one for BLOCK weights
    Candidate* candidates;
};

INLINE bool before(const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.index < b.index);
}

// The largest of a row, or NaN where there is one; the largest of each sixteen too.
INLINE float largest_of(const T* x, int64_t V, float* maxima) {
    vec most = splat(NOTHING);
    ivec unordered = {};
    for (int64_t i = 0; i < V; i += VEC) {
        int64_t n = V - i < VEC ? V - i : VEC;
        vec value = select_part(n, load_part(x + i, n), splat(NOTHING));
        unordered |= value != value;
        most = max16(value, most);
        maxima[i / VEC] = hmax(value);
    }
    for (int64_t i = 0; i < VEC; i++)
        if (unordered[i]) return std::numeric_limits<float>::quiet_NaN();
    return hmax(most);
}

// exp((x - top) / temperature) of each, 1 where x is the top; and their sum, block by block.
INLINE double weigh(const T* x, int64_t V, float top, float temperature, const Scratch& s) {
    const float rate = 1 / temperature;
    double total = 0;
    for (int64_t start = 0; start < V; start += BLOCK) {
        vec sum = {};
        for (int64_t i = start; i < V && i < start + BLOCK; i += VEC) {
            int64_t n = V - i < VEC ? V - i : VEC;
            vec value = select_part(n, load_part(x + i, n), splat(NOTHING));
            vec weight = exp16((value - top) * rate);
            weight = value == top ? splat(1) : weight;
            weight = select_part(n, weight, vec{});
            store_part(s.weights + i, weight, n);
            sum += weight;
        }
        s.sums[start / BLOCK] = hsum(sum);
        total += s.sums[start / BLOCK];
    }
    return total;
}

// The first index at which the running sum is above so much.
INLINE int64_t first_above(int64_t V, double wanted, const Scratch& s) {
    double running = 0;
    for (int64_t start = 0; start < V; start += BLOCK) {
        if (running + s.sums[start / BLOCK] > wanted) {
            double within = running;
            for (int64_t i = start; i < V && i < start + BLOCK; i++)
                if ((within += s.weights[i]) > wanted) return i;
        }
        running += s.sums[start / BLOCK];
    }
    return V - 1;
}

// A weight that none of the nucleus is below: the larger ones have top_p of the total already.
INLINE float least_weight(int64_t V, double wanted, const Scratch& s) {
    constexpr int64_t STEPS = 8;
    const float steps[STEPS] = {0x1p-2f, 0x1p-4f, 0x1p-6f, 0x1p-8f, 0x1p-10f, 0x1p-12f, 0x1p-15f, 0x1p-19f};
    vec sums[STEPS] = {};
    for (int64_t i = 0; i < V; i += VEC) {
        vec weight = load_part(s.weights + i, V - i < VEC ? V - i : VEC);
        for (int64_t k = 0; k < STEPS; k++) sums[k] += weight >= steps[k] ? weight : vec{};
    }
    for (int64_t k = 0; k < STEPS; k++)
        if (hsum(sums[k]) > wanted * 1.001) return steps[k];
    return 0;
}

// All whose logit and weight are not below these; how many.
INLINE int64_t gather(const T* x, int64_t V, float logit, float weight, const Scratch& s) {
    int64_t count = 0;
    for (int64_t i = 0; i < V; i += VEC) {
        if (s.maxima[i / VEC] < logit) continue;
        if (weight > 0 && !any_above(load_part(s.weights + i, V - i < VEC ? V - i : VEC), splat(weight * 0.999f))) continue;
        for (int64_t k = i; k < V && k < i + VEC; k++)
            if (load(x + k) >= logit && s.weights[k] >= weight)
                s.candidates[count++] = {load(x + k), s.weights[k], int32_t(k)};
    }
    return count;
}

// A logit that none of the k largest is below: the k-th largest of the maxima of sixteen.
INLINE float least_logit(int64_t V, int64_t k, const Scratch& s) {
    int64_t count = (V + VEC - 1) / VEC;
    if (k >= count) return NOTHING;
    float* copy = reinterpret_cast<float*>(s.candidates);
    memcpy(copy, s.maxima, count * sizeof *copy);
    std::nth_element(copy, copy + k - 1, copy + count, [](float a, float b) { return a > b; });
    return copy[k - 1];
}

INLINE int64_t sample(const T* x, int64_t V, float u, float temperature, int64_t top_k, float top_p, const Scratch& s) {
    const float top = largest_of(x, V, s.maxima);
    if (temperature == 0 || top != top) {
        int64_t v = 0;
        while (v < V - 1 && (top == top ? load(x + v) != top : load(x + v) == load(x + v))) v++;
        return v;
    }
    double total = weigh(x, V, top, temperature, s);
    const bool few = top_k > 0 && top_k < V;
    if (!few && !(top_p < 1)) return first_above(V, u * total, s);
    int64_t count = few ? gather(x, V, least_logit(V, top_k, s), 0, s)
                        : gather(x, V, NOTHING, least_weight(V, top_p * total, s), s);
    Candidate* all = s.candidates;
    if (few) {
        std::nth_element(all, all + top_k - 1, all + count, before);
        count = top_k;
        total = 0;
        for (int64_t i = 0; i < count; i++) total += all[i].weight;
    }
    if (top_p < 1) {
        std::sort(all, all + count, before);
        double sum = all[0].weight, wanted = top_p * total;
        int64_t i = 1;
        for (; i < count && sum < wanted; i++) sum += all[i].weight;
        count = i;
        total = sum;
    }
    std::sort(all, all + count, [](const Candidate& a, const Candidate& b) { return a.index < b.index; });
    double running = 0;
    for (int64_t i = 0; i < count; i++)
        if ((running += all[i].weight) > u * total) return all[i].index;
    return all[count - 1].index;
}

// bytes: of one row's scratch, a multiple of 64; `scratch` has as many of them as rows
EXPORT void sampling_forward(const T* logits, const float* u, int64_t* token, char* scratch, int64_t bytes, int64_t B,
                             int64_t V, int64_t VP, float temperature, int64_t top_k, float top_p) {
#pragma omp parallel for schedule(dynamic) if (B > 1)
    for (int64_t b = 0; b < B; b++) {
        char* own = scratch + b * bytes;
        const int64_t vectors = (V + VEC - 1) / VEC, blocks = (V + BLOCK - 1) / BLOCK;
        double* sums = reinterpret_cast<double*>(own);
        float* weights = reinterpret_cast<float*>(sums + blocks);
        float* maxima = weights + V;
        Candidate* candidates = reinterpret_cast<Candidate*>(maxima + vectors);
        token[b] = sample(logits + b * VP, V, u[b], temperature, top_k, top_p, {weights, maxima, sums, candidates});
    }
}
