// Neighbouring int8 that one instruction reads or writes, 1 to 16 of them: as words of four, as dp4a takes them.
#pragma once

// The word's bytes are the numbers; what is not read is 0.
template <int BYTES>
struct Int8s {
    static constexpr int WORDS = (BYTES + 3) / 4;
    int word[WORDS];
};

// from: at a multiple of BYTES.
template <int BYTES>
__device__ Int8s<BYTES> load_int8s(const signed char* from) {
    Int8s<BYTES> result;
    if constexpr (BYTES == 16) {
        const int4 four = *reinterpret_cast<const int4*>(from);
        result.word[0] = four.x, result.word[1] = four.y, result.word[2] = four.z, result.word[3] = four.w;
    } else if constexpr (BYTES == 8) {
        const int2 two = *reinterpret_cast<const int2*>(from);
        result.word[0] = two.x, result.word[1] = two.y;
    } else if constexpr (BYTES == 4) {
        result.word[0] = *reinterpret_cast<const int*>(from);
    } else if constexpr (BYTES == 2) {
        result.word[0] = *reinterpret_cast<const unsigned short*>(from);
    } else {
        result.word[0] = *reinterpret_cast<const unsigned char*>(from);
    }
    return result;
}

// to: at a multiple of BYTES.
template <int BYTES>
__device__ void store_int8s(signed char* to, const Int8s<BYTES>& value) {
    if constexpr (BYTES == 16)
        *reinterpret_cast<int4*>(to) = make_int4(value.word[0], value.word[1], value.word[2], value.word[3]);
    else if constexpr (BYTES == 8)
        *reinterpret_cast<int2*>(to) = make_int2(value.word[0], value.word[1]);
    else if constexpr (BYTES == 4)
        *reinterpret_cast<int*>(to) = value.word[0];
    else if constexpr (BYTES == 2)
        *reinterpret_cast<short*>(to) = static_cast<short>(value.word[0]);
    else
        *to = static_cast<signed char>(value.word[0]);
}

// sum + the products of the bytes of both. PTX ISA, "Integer Arithmetic Instructions: dp4a".
template <int BYTES>
__device__ int dot(const Int8s<BYTES>& a, const Int8s<BYTES>& b, int sum) {
#pragma unroll
    for (int w = 0; w < Int8s<BYTES>::WORDS; w++) sum = __dp4a(a.word[w], b.word[w], sum);
    return sum;
}
