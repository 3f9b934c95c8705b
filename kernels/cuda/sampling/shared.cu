#include "common/choice.cuh"
#include "common/reduce.cuh"

template <typename F>
__device__ Whole reduce_lanes(Whole value, F combine) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value = combine(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}
struct Add {
    __device__ Whole operator()(Whole a, Whole b) const { return a + b; }
};
struct Larger {
    __device__ Whole operator()(Whole a, Whole b) const { return a > b ? a : b; }
};

// Every thread gets it. The barrier at the end lets the next call use shared memory again.
template <int THREADS, typename F>
__device__ Whole reduce_block(Whole value, F combine) {
    __shared__ Whole parts[THREADS / WARP];
    value = reduce_lanes(value, combine);
    if (lane_id() == 0) parts[warp_id()] = value;
    __syncthreads();
    value = reduce_lanes(lane_id() < THREADS / WARP ? parts[lane_id()] : 0, combine);
    __syncthreads();
    return value;
}

template <typename T, int THREADS>
struct BlockSums {
    const T* logits;
    int V;
    Weights weights;
    __device__ long long count(unsigned key) const {
        Whole found = 0;
        for (int v = threadIdx.x; v < V; v += THREADS) found += Key<T>::of(logits[v]) >= key;
        return reduce_block<THREADS>(found, Add{});
    }
    __device__ Whole weight(unsigned key) const {
        Whole found = 0;
        for (int v = threadIdx.x; v < V; v += THREADS)
            if (Key<T>::of(logits[v]) >= key) found += weights.of(to_float(logits[v]));
        return reduce_block<THREADS>(found, Add{});
    }
};

// The token of each row by u: of its top_k largest logits as few as have top_p of the weight. One block a row; in the
// end each warp adds up a stretch of it, and the one where the running sum passes u's share looks for the token. One
// block to a multiprocessor is said to be enough: of 1024 threads NVRTC 13.0 wants two, and spills.
template <typename T, int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
    sampling_forward(long long* token, const T* logits, const float* u, int V, int VP, float temperature, int top_k,
                     float top_p) {
    constexpr int WARPS = THREADS / WARP;
    __shared__ Whole sums[WARPS];
    __shared__ int equals[WARPS];
    const int b = blockIdx.x;
    logits += b * (long long)VP;
    Whole best = 0;  // the largest key, of equal ones the first
    for (int v = threadIdx.x; v < V; v += THREADS) {
        const Whole here = static_cast<Whole>(Key<T>::of(logits[v])) << 32 | (0xffffffffu - v);
        best = here > best ? here : best;
    }
    best = reduce_block<THREADS>(best, Larger{});
    const unsigned largest = best >> 32;
    if (temperature == 0 || largest == Key<T>::NOT_A_NUMBER) {
        if (threadIdx.x == 0) token[b] = 0xffffffffu - static_cast<unsigned>(best);
        return;
    }
    const Weights weights = {Key<T>::value(largest), LOG2_E / temperature};
    const Choice kept = choose<T>(BlockSums<T, THREADS>{logits, V, weights}, weights, V, top_k, top_p);

    const int stretch = (V + WARPS - 1) / WARPS, first = warp_id() * stretch, last = min(V, first + stretch);
    Whole sum = 0;
    int equal = 0;
    for (int v = first + lane_id(); v < last; v += WARP) {
        const unsigned key = Key<T>::of(logits[v]);
        if (key > kept.key) sum += weights.of(to_float(logits[v]));
        equal += key == kept.key;
    }
    sum = reduce_lanes(sum, Add{});
    equal = reduce_lanes(equal, Add{});
    if (lane_id() == 0) sums[warp_id()] = sum, equals[warp_id()] = equal;
    __syncthreads();
    const Whole each = weights.of(Key<T>::value(kept.key)), target = target_of(u[b], kept.total);
    Whole running = 0;
    long long left = kept.equal;
    for (int w = 0; w < warp_id(); w++) {
        const long long taken = min(left, static_cast<long long>(equals[w]));
        running += sums[w] + taken * each;
        left -= taken;
    }
    const Whole own = sums[warp_id()] + min(left, static_cast<long long>(equals[warp_id()])) * each;
    if (running > target || running + own <= target) return;
    for (int start = first; start < last; start += WARP) {
        const int v = start + lane_id();
        const unsigned key = v < last ? Key<T>::of(logits[v]) : 0;
        const unsigned same = __ballot_sync(ALL_LANES, v < last && key == kept.key);
        const unsigned below = (1u << lane_id()) - 1;
        const bool keep = v < last && (key > kept.key || (key == kept.key && __popc(same & below) < left));
        Whole upto = keep ? weights.of(to_float(logits[v])) : 0;
#pragma unroll
        for (int distance = 1; distance < WARP; distance *= 2) {
            const Whole before = __shfl_up_sync(ALL_LANES, upto, distance);
            if (lane_id() >= distance) upto += before;
        }
        const unsigned above = __ballot_sync(ALL_LANES, running + upto > target);
        if (above) {
            if (lane_id() == 0) token[b] = start + __ffs(above) - 1;
            return;
        }
        running += __shfl_sync(ALL_LANES, upto, WARP - 1);
        left -= min(left, static_cast<long long>(__popc(same)));
    }
}
