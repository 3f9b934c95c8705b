#include "common/choice.cuh"

template <typename T>
struct RowSums {
    const T* logits;
    int V;
    Weights weights;
    __device__ long long count(unsigned key) const {
        long long found = 0;
        for (int v = 0; v < V; v++) found += Key<T>::of(logits[v]) >= key;
        return found;
    }
    __device__ Whole weight(unsigned key) const {
        Whole found = 0;
        for (int v = 0; v < V; v++)
            if (Key<T>::of(logits[v]) >= key) found += weights.of(to_float(logits[v]));
        return found;
    }
};

// The token of each row by u: of its top_k largest logits as few as have top_p of the weight. One thread a row.
template <typename T>
__global__ void sampling_forward(long long* token, const T* logits, const float* u, int B, int V, int VP,
                                 float temperature, int top_k, float top_p) {
    int b = blockIdx.x * blockDim.x + threadIdx.x;
    if (b >= B) return;
    logits += b * (long long)VP;
    int best = 0;
    unsigned largest = 0;
    for (int v = 0; v < V; v++) {
        unsigned key = Key<T>::of(logits[v]);
        if (key > largest) largest = key, best = v;
    }
    token[b] = best;
    if (temperature == 0 || largest == Key<T>::NOT_A_NUMBER) return;
    Weights weights = {to_float(logits[best]), LOG2_E / temperature};
    Choice kept = choose<T>(RowSums<T>{logits, V, weights}, weights, V, top_k, top_p);
    Whole target = target_of(u[b], kept.total), running = 0;
    for (int v = 0; v < V; v++) {
        unsigned key = Key<T>::of(logits[v]);
        if (key < kept.key || (key == kept.key && kept.equal-- <= 0)) continue;
        running += weights.of(to_float(logits[v]));
        if (running > target) {
            token[b] = v;
            return;
        }
    }
}
