#include <algorithm>

#include "common.hpp"

// The token of each row: of weights exp((logit - largest) / temperature) the top_k largest are kept, of those as few as
// have top_p of the weight, and the running sum of what is kept is compared with u times all of it.
EXPORT void sampling_forward(const T* logits, const float* u, int64_t* token, double* weights, int64_t* order,
                             int64_t B, int64_t V, int64_t VP, float temperature, int64_t top_k, float top_p) {
    for (int64_t b = 0; b < B; b++, logits += VP) {
        int64_t best = 0;
        for (int64_t v = V - 1; v >= 0; v--) {  // the first NaN, or the first of the largest
            float value = load(logits + v), most = load(logits + best);
            if (value != value || (most == most && value >= most)) best = v;
        }
        float top = load(logits + best);
        token[b] = best;
        if (temperature == 0 || top != top) continue;
        for (int64_t v = 0; v < V; v++) {
            float value = load(logits + v);
            weights[v] = value == top ? 1 : std::exp((double(value) - top) / temperature);
            order[v] = v;
        }
        std::stable_sort(order, order + V, [&](int64_t a, int64_t c) { return load(logits + a) > load(logits + c); });
        int64_t kept = top_k > 0 && top_k < V ? top_k : V;
        double total = 0;
        for (int64_t i = 0; i < kept; i++) total += weights[order[i]];
        if (top_p < 1) {
            double sum = weights[order[0]], wanted = top_p * total;
            int64_t i = 1;
            for (; i < kept && sum < wanted; i++) sum += weights[order[i]];
            kept = i;
            total = sum;
        }
        for (int64_t i = kept; i < V; i++) weights[order[i]] = -1;
        double running = 0, wanted = u[b] * total;
        for (int64_t v = 0; v < V; v++) {
            if (weights[v] < 0) continue;
            token[b] = v;
            running += weights[v];
            if (running > wanted) break;
        }
    }
}
