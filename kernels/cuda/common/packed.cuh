// N neighbouring elements that one instruction reads or writes: 128 bits where N * sizeof(T) is 16, less where rows or
// pointers are not aligned to that. Which N a call allows, kernels/cuda/packing.py says; 1 is always right.
//
//     Packed<float, N> values = load_floats<N>(row + i);    // of T, converted
//     values[0] += 1;
//     store_floats(out + i, values);                        // rounded to T
//
// `…_once` is for data that is not touched again soon: it is the first to leave the caches, and so the rest can stay.
// PTX ISA, "Cache operators": ld.global.cs, st.global.cs.
#pragma once

#include "common/types.cuh"

constexpr int PACK_BYTES = 16;  // the widest access of a thread

template <typename T, int N>
struct alignas(sizeof(T) * N < PACK_BYTES ? sizeof(T) * N : PACK_BYTES) Packed {
    T at[N];
    __device__ T& operator[](int i) { return at[i]; }
    __device__ const T& operator[](int i) const { return at[i]; }
};

// An integer, or a vector of them, of so many bytes: what a Packed is while it moves.
template <int BYTES>
struct WordOf;
template <>
struct WordOf<2> { using type = unsigned short; };
template <>
struct WordOf<4> { using type = unsigned; };
template <>
struct WordOf<8> { using type = uint2; };
template <>
struct WordOf<16> { using type = uint4; };

template <typename T, int N>
using Word = typename WordOf<alignof(Packed<T, N>)>::type;

// Words that make up a Packed: more than one where T is float and N was chosen for 16-bit neighbours.
template <typename T, int N>
constexpr int WORDS = sizeof(Packed<T, N>) / sizeof(Word<T, N>);

// load and store: global or shared memory.
template <int N, typename T>
__device__ Packed<T, N> load(const T* from) {
    Packed<T, N> result;
#pragma unroll
    for (int w = 0; w < WORDS<T, N>; w++)
        reinterpret_cast<Word<T, N>*>(&result)[w] = reinterpret_cast<const Word<T, N>*>(from)[w];
    return result;
}

// All others: global memory.
template <int N, typename T>
__device__ Packed<T, N> load_once(const T* from) {
    Packed<T, N> result;
#pragma unroll
    for (int w = 0; w < WORDS<T, N>; w++)
        reinterpret_cast<Word<T, N>*>(&result)[w] = __ldcs(reinterpret_cast<const Word<T, N>*>(from) + w);
    return result;
}

template <int N, typename T>
__device__ void store(T* to, const Packed<T, N>& value) {
#pragma unroll
    for (int w = 0; w < WORDS<T, N>; w++)
        reinterpret_cast<Word<T, N>*>(to)[w] = reinterpret_cast<const Word<T, N>*>(&value)[w];
}

template <int N, typename T>
__device__ void store_once(T* to, const Packed<T, N>& value) {
#pragma unroll
    for (int w = 0; w < WORDS<T, N>; w++)
        __stcs(reinterpret_cast<Word<T, N>*>(to) + w, reinterpret_cast<const Word<T, N>*>(&value)[w]);
}

// One store to global memory, by name: a plain assignment of a uint4 the compiler takes apart into four, and does not
// always put together again. PTX ISA, "Data Movement and Conversion Instructions: st".
__device__ inline void store_word(unsigned short* to, unsigned short word) { *to = word; }
__device__ inline void store_word(unsigned* to, unsigned word) { *to = word; }
__device__ inline void store_word(uint2* to, uint2 word) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(word.x), "r"(word.y) : "memory");
}
__device__ inline void store_word(uint4* to, uint4 word) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word.x), "r"(word.y), "r"(word.z),
                 "r"(word.w)
                 : "memory");
}

// 16-bit types two at a time, here and below: fewer instructions.
template <typename T, int N>
__device__ Packed<float, N> to_floats(const Packed<T, N>& packed) {
    Packed<float, N> result;
    if constexpr (sizeof(T) == 2 && N % 2 == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            float2 pair = to_float_pair(&packed[i]);
            result[i] = pair.x;
            result[i + 1] = pair.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) result[i] = to_float(packed[i]);
    }
    return result;
}

// Rounds to nearest even.
template <typename T, int N>
__device__ Packed<T, N> from_floats(const Packed<float, N>& values) {
    Packed<T, N> result;
    if constexpr (sizeof(T) == 2 && N % 2 == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 2) from_float_pair(&result[i], values[i], values[i + 1]);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) result[i] = from_float<T>(values[i]);
    }
    return result;
}

template <int N, typename T>
__device__ Packed<float, N> load_floats(const T* from) {
    return to_floats(load<N>(from));
}

template <int N, typename T>
__device__ Packed<float, N> load_floats_once(const T* from) {
    return to_floats(load_once<N>(from));
}

template <int N, typename T>
__device__ void store_floats(T* to, const Packed<float, N>& values) {
    Packed<T, N> packed = from_floats<T>(values);
#pragma unroll
    for (int w = 0; w < WORDS<T, N>; w++)
        store_word(reinterpret_cast<Word<T, N>*>(to) + w, reinterpret_cast<const Word<T, N>*>(&packed)[w]);
}

template <int N, typename T>
__device__ void store_floats_once(T* to, const Packed<float, N>& values) {
    store_once<N>(to, from_floats<T>(values));
}

template <int N>
__device__ Packed<float, N> filled(float value) {
    Packed<float, N> result;
#pragma unroll
    for (int i = 0; i < N; i++) result[i] = value;
    return result;
}
