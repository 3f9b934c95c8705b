// What sampling keeps of a row of logits, found bit by bit: `Sums` says how many logits, or how much weight, are not
// below a key, and whoever adds them up, a thread or a block, all arrive at the same whole numbers.
//
// A key is a logit's bits made to grow with its value: of T alone, so that nothing is rounded before it is compared. A
// weight is exp((logit - largest) / temperature) in units of 2^-40: sums of whole numbers come out the same in any order,
// so that there is no edge at which two threads could differ.
#pragma once

#include "common/math.cuh"
#include "common/types.cuh"

typedef unsigned long long Whole;
constexpr float UNITS = 1099511627776.0f;  // 2^40, the largest logit's weight: 2^23 of them fit

template <typename T>
struct Key {
    static constexpr int BITS = 8 * sizeof(T);
    static constexpr unsigned SIGN = 1u << (BITS - 1), ALL = SIGN - 1 + SIGN;
    static constexpr unsigned NOT_A_NUMBER = ALL;  // above all others

    // -0 is 0.
    __device__ static unsigned of(T value) {
        const float wide = to_float(value);
        if (wide != wide) return NOT_A_NUMBER;
        if (wide == 0) return SIGN;
        unsigned bits;
        if constexpr (sizeof(T) == 2)
            bits = *reinterpret_cast<const unsigned short*>(&value);
        else
            bits = __float_as_uint(wide);
        return bits & SIGN ? ~bits & ALL : bits | SIGN;
    }
    __device__ static float value(unsigned key) {
        const unsigned bits = key & SIGN ? key & ~SIGN : ~key & ALL;
        if constexpr (sizeof(T) == 2) {
            const unsigned short narrow = bits;
            return to_float(*reinterpret_cast<const T*>(&narrow));
        } else {
            return __uint_as_float(bits);
        }
    }
};

struct Weights {
    float top, rate;  // rate: log2(e) / temperature
    __device__ Whole of(float value) const {
        if (value == top) return static_cast<Whole>(UNITS);
        return static_cast<Whole>(exp2_approx((value - top) * rate) * UNITS);
    }
};

// Kept are all keys above `key`, and the first `equal` of those that are it; their weight.
struct Choice {
    unsigned key;
    long long equal;
    Whole total;
};

// sums.count(key), sums.weight(key): of the keys that are not below it.
template <typename T, typename Sums>
__device__ Choice choose(Sums sums, Weights weights, int V, int top_k, float top_p) {
    Choice kept = {0, 0, 0};
    if (top_k > 0 && top_k < V) {
        for (unsigned bit = Key<T>::SIGN; bit; bit >>= 1)
            if (sums.count(kept.key | bit) >= top_k) kept.key |= bit;
        kept.equal = top_k - sums.count(kept.key + 1);
        kept.total = sums.weight(kept.key + 1) + kept.equal * weights.of(Key<T>::value(kept.key));
    } else {
        kept.total = sums.weight(0);
    }
    if (!(top_p < 1)) return kept;
    Whole wanted = static_cast<Whole>(ceil(static_cast<double>(top_p) * static_cast<double>(kept.total)));
    wanted = wanted > 0 ? wanted : 1;  // one is always kept
    unsigned key = 0;
    for (unsigned bit = Key<T>::SIGN; bit; bit >>= 1) {
        const unsigned tried = key | bit;
        if (tried <= kept.key || sums.weight(tried) >= wanted) key = tried;
    }
    const Whole above = sums.weight(key + 1), each = weights.of(Key<T>::value(key));
    const long long needed = each ? (wanted - above + each - 1) / each : 1;
    kept.equal = key == kept.key && needed > kept.equal ? kept.equal : needed;
    kept.key = key;
    kept.total = above + kept.equal * each;
    return kept;
}

// The token is the first at which the running sum is above this.
__device__ inline Whole target_of(float u, Whole total) {
    const Whole target = static_cast<Whole>(static_cast<double>(u) * static_cast<double>(total));
    return target < total ? target : total - 1;
}
