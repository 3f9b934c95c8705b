// The arithmetic of PTX where C++ has no operator for it: rounding modes, half precision, bit fields, saturation.
#pragma once
#include "runtime.hpp"

namespace sim {

template <class To, class From>
inline To bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    return __builtin_bit_cast(To, value);
}

// --- floating point: flush to zero, saturate, minimum and maximum ---------------------------------------------------

inline f32 flush(f32 x) { return __builtin_fabsf(x) < 1.17549435e-38f ? __builtin_copysignf(0.0f, x) : x; }  // .ftz
inline f32 saturate(f32 x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }                              // .sat; NaN is 0
inline f64 saturate(f64 x) { return x > 0.0 ? (x < 1.0 ? x : 1.0) : 0.0; }
inline bool is_nan(f32 x) { return x != x; }
inline bool is_nan(f64 x) { return x != x; }

// min and max answer the operand that is a number, and take -0 for less than +0.
template <class F>
inline F minimum(F a, F b) {
    if (is_nan(a)) return b;
    if (is_nan(b)) return a;
    return a < b || (a == b && __builtin_signbit(a)) ? a : b;
}
template <class F>
inline F maximum(F a, F b) {
    if (is_nan(a)) return b;
    if (is_nan(b)) return a;
    return a > b || (a == b && !__builtin_signbit(a)) ? a : b;
}
// The .NaN forms answer NaN where one operand is.
template <class F>
inline F minimum_nan(F a, F b) { return is_nan(a) ? a : is_nan(b) ? b : minimum(a, b); }
template <class F>
inline F maximum_nan(F a, F b) { return is_nan(a) ? a : is_nan(b) ? b : maximum(a, b); }

// --- directed rounding of f32 ---------------------------------------------------------------------------------------

enum class Toward { Zero, Down, Up };

// `sum` + `error` is exact and |error| is at most half a unit of `sum`: round it to f32 in one direction.
template <Toward direction>
inline f32 round_toward(f64 sum, f64 error) {
    f32 nearest = static_cast<f32>(sum);
    if (is_nan(nearest) || __builtin_isinf(sum)) return nearest;
    f64 rest = sum - static_cast<f64>(nearest);  // exact, unless `nearest` overflowed
    if (__builtin_isinf(nearest)) rest = nearest > 0 ? -1.0 : 1.0;
    if (rest == 0) rest = error;
    if (rest == 0) return nearest;
    bool below = rest < 0;  // the exact value lies below `nearest`
    bool down = direction == Toward::Down || (direction == Toward::Zero && sum > 0);
    if (down == below) return __builtin_nextafterf(nearest, down ? -__builtin_inff() : __builtin_inff());
    return nearest;
}

template <Toward direction>
inline f32 fma_toward(f32 a, f32 b, f32 c) {
    f64 product = static_cast<f64>(a) * static_cast<f64>(b);  // exact
    f64 sum = product + static_cast<f64>(c);
    f64 of_c = sum - product;
    f64 error = (product - (sum - of_c)) + (static_cast<f64>(c) - of_c);  // two-sum
    // A sum that cancels is -0 when rounding down, unless both terms are +0.
    bool negative = __builtin_signbit(product) || __builtin_signbit(c);
    if (direction == Toward::Down && sum == 0 && error == 0 && negative) return -0.0f;
    return round_toward<direction>(sum, error);
}
template <Toward direction>
inline f32 add_toward(f32 a, f32 b) { return fma_toward<direction>(a, 1.0f, b); }
template <Toward direction>
inline f32 multiply_toward(f32 a, f32 b) { return round_toward<direction>(static_cast<f64>(a) * static_cast<f64>(b), 0.0); }

template <Toward direction>
inline f32 divide_toward(f32 a, f32 b) {
    f64 quotient = static_cast<f64>(a) / static_cast<f64>(b);
    if (is_nan(quotient) || __builtin_isinf(quotient) || quotient == 0) return static_cast<f32>(quotient);
    return round_toward<direction>(quotient, __builtin_fma(-quotient, static_cast<f64>(b), static_cast<f64>(a)) / static_cast<f64>(b));
}
template <Toward direction>
inline f32 sqrt_toward(f32 x) {
    f64 root = __builtin_sqrt(static_cast<f64>(x));
    if (is_nan(root) || __builtin_isinf(root) || root == 0) return static_cast<f32>(root);
    return round_toward<direction>(root, __builtin_fma(-root, root, static_cast<f64>(x)) / root);
}

// --- carries: a number of more words than one -----------------------------------------------------------------------

template <class T>
inline T add_with_carry(T a, T b, u32 in, u32& out) {
    if constexpr (sizeof(T) == 4) {
        u64 sum = static_cast<u64>(static_cast<u32>(a)) + static_cast<u32>(b) + in;
        out = static_cast<u32>(sum >> 32);
        return static_cast<T>(sum);
    } else {
        u128 sum = static_cast<u128>(static_cast<u64>(a)) + static_cast<u64>(b) + in;
        out = static_cast<u32>(sum >> 64);
        return static_cast<T>(sum);
    }
}
// The carry of a difference is that of a + ~b + 1: there where nothing was borrowed. The manual leaves open which of the
// two it is; the division of 128-bit integers that NVRTC writes ends a chain of subc with addc, and needs this one.
template <class T>
inline T sub_with_carry(T a, T b, u32 in, u32& out) { return add_with_carry<T>(a, static_cast<T>(~b), in, out); }
template <class T> inline T product_lo(T a, T b) { return static_cast<T>(static_cast<u64>(a) * static_cast<u64>(b)); }
template <class T>
inline T product_hi(T a, T b) {
    return static_cast<T>(static_cast<s128>(a) * static_cast<s128>(b) >> 8 * sizeof(T));
}

inline s32 dot_bytes(u32 a, bool a_signed, u32 b, bool b_signed, u32 c) {
    for (u32 i = 0; i < 32; i += 8) {
        u8 x = static_cast<u8>(a >> i), y = static_cast<u8>(b >> i);
        c += static_cast<u32>((a_signed ? static_cast<s8>(x) : x) * (b_signed ? static_cast<s8>(y) : y));
    }
    return static_cast<s32>(c);
}
inline s32 dot_halves(u32 a, bool a_signed, u32 b, bool b_signed, u32 from, u32 c) {
    for (u32 i = 0; i < 2; i++) {
        u16 x = static_cast<u16>(a >> 16 * i);
        u8 y = static_cast<u8>(b >> (from + 8 * i));
        c += static_cast<u32>(a_signed ? static_cast<s16>(x) : x) * static_cast<u32>(b_signed ? static_cast<s8>(y) : y);
    }
    return static_cast<s32>(c);
}

// --- approximations -------------------------------------------------------------------------------------------------
// The manual gives bounds on the errors of the .approx forms, not values. Most are within 2 units, and are computed as well
// as f32 can; tanh.approx is only good to 2^-11, so its result is rounded to 11 bits: a kernel that needs more must fail here.

inline f32 tanh_approx(f32 x) {
    u32 exact = bits<u32>(__builtin_tanhf(x));
    return is_nan(x) ? x : bits<f32>((exact + 0x1000u) & ~0x1fffu);
}

// --- half precision -------------------------------------------------------------------------------------------------

// Rounds to `mantissa` bits (nearest even, or toward zero) with exponents of `exponent` bits. Overflow becomes infinity;
// NaN becomes 0x7fff. `inexact` says that the true value is not `x` but a little more (1) or less (-1) in magnitude.
template <int exponent, int mantissa, bool truncate = false>
inline u16 narrow(f64 x, int inexact = 0) {
    constexpr int bias = (1 << (exponent - 1)) - 1;
    constexpr u32 infinity = ((1u << exponent) - 1) << mantissa;
    u64 raw = bits<u64>(x);
    u16 sign = static_cast<u16>(raw >> 63 << 15);
    if (is_nan(x)) return 0x7fff;
    if (__builtin_isinf(x)) return static_cast<u16>(sign | infinity);
    int power = static_cast<int>(raw >> 52 & 0x7ff) - 1023;
    u64 fraction = (raw & ((1ull << 52) - 1)) | (raw >> 52 & 0x7ff ? 1ull << 52 : 0);
    int drop = 52 - mantissa + (power < 1 - bias ? 1 - bias - power : 0);
    if (drop > 62 || !fraction) return sign;
    u64 kept = fraction >> drop, rest = fraction & ((1ull << drop) - 1), half = 1ull << (drop - 1);
    bool up = rest > half || (rest == half && (inexact > 0 || (inexact == 0 && (kept & 1))));
    u64 result = power < 1 - bias ? kept : kept + (static_cast<u64>(power + bias - 1) << mantissa);
    if (!truncate && up) result++;
    if (result >= infinity) return static_cast<u16>(sign | (truncate ? infinity - 1 : infinity));
    return static_cast<u16>(sign | result);
}

struct Bf16 {
    static f32 decode(u16 raw) { return bits<f32>(static_cast<u32>(raw) << 16); }
    static u16 encode(f32 x) {  // to nearest even
        u32 raw = bits<u32>(x);
        return is_nan(x) ? 0x7fff : static_cast<u16>((raw + 0x7fff + (raw >> 16 & 1)) >> 16);
    }
    static u16 encode_down(f32 x) { return is_nan(x) ? 0x7fff : static_cast<u16>(bits<u32>(x) >> 16); }  // toward zero
    static u16 round(f64 x, int inexact = 0) { return narrow<8, 7>(x, inexact); }
};

struct F16 {
    static f32 decode(u16 raw) {
        u32 sign = static_cast<u32>(raw & 0x8000) << 16, power = raw >> 10 & 31, fraction = raw & 0x3ff;
        if (power == 31) return bits<f32>(sign | 0x7f800000u | fraction << 13);
        if (power) return bits<f32>(sign | (power + 112) << 23 | fraction << 13);
        f32 small = static_cast<f32>(fraction) * 5.9604644775390625e-8f;  // 2^-24
        return sign ? -small : small;
    }
    static u16 encode(f32 x) { return narrow<5, 10>(static_cast<f64>(x)); }
    static u16 encode_down(f32 x) { return narrow<5, 10, true>(static_cast<f64>(x)); }
    static u16 round(f64 x, int inexact = 0) { return narrow<5, 10>(x, inexact); }
};

// Floats of eight bits; what is too large becomes the largest number (.satfinite).
inline f64 relu(f64 x) { return x > 0 || is_nan(x) ? x : 0.0; }
inline u16 pack_bytes(u32 upper, u32 lower) { return static_cast<u16>(upper << 8 | lower); }
struct E4m3 {  // no infinity, and NaN is all ones
    static f64 decode(u32 raw) {
        u32 power = raw >> 3 & 15, fraction = raw & 7;
        if (power == 15 && fraction == 7) return __builtin_nan("");
        f64 size = power ? __builtin_ldexp(8 + fraction, static_cast<int>(power) - 10) : __builtin_ldexp(fraction, -9);
        return raw & 0x80 ? -size : size;
    }
    static u32 encode(f64 x) {
        if (is_nan(x)) return 0x7f;
        u32 sign = static_cast<u32>(bits<u64>(x) >> 63 << 7);
        f64 size = __builtin_fabs(x);
        if (size >= 448) return sign | 0x7e;
        return sign | (size >= 128 ? narrow<4, 3>(size / 2) + 8u : narrow<4, 3>(size));
    }
};
struct E5m2 {
    static f64 decode(u32 raw) { return static_cast<f64>(F16::decode(static_cast<u16>(raw << 8))); }
    static u32 encode(f64 x) {
        if (is_nan(x)) return 0x7f;
        u32 sign = static_cast<u32>(bits<u64>(x) >> 63 << 7), size = narrow<5, 2>(__builtin_fabs(x));
        return sign | (size >= 0x7c ? 0x7bu : size);
    }
};

// Sums and products of two halves are exact in f64, or differ from it by less than rounding can see.
template <class H> inline u16 half_add(u16 a, u16 b) { return H::round(static_cast<f64>(H::decode(a)) + H::decode(b)); }
template <class H> inline u16 half_sub(u16 a, u16 b) { return H::round(static_cast<f64>(H::decode(a)) - H::decode(b)); }
template <class H> inline u16 half_mul(u16 a, u16 b) { return H::round(static_cast<f64>(H::decode(a)) * H::decode(b)); }
template <class H>
inline u16 half_fma(u16 a, u16 b, u16 c) {
    f64 product = static_cast<f64>(H::decode(a)) * H::decode(b), addend = H::decode(c);
    f64 sum = product + addend, of_c = sum - product;
    f64 error = (product - (sum - of_c)) + (addend - of_c);
    return H::round(sum, error == 0 || is_nan(error) ? 0 : (error > 0) == (sum > 0) ? 1 : -1);
}
template <class H> inline u16 half_min(u16 a, u16 b) { return H::encode(minimum(H::decode(a), H::decode(b))); }
template <class H> inline u16 half_max(u16 a, u16 b) { return H::encode(maximum(H::decode(a), H::decode(b))); }
template <class H> inline u16 half_min_nan(u16 a, u16 b) { return H::encode(minimum_nan(H::decode(a), H::decode(b))); }
template <class H> inline u16 half_max_nan(u16 a, u16 b) { return H::encode(maximum_nan(H::decode(a), H::decode(b))); }
template <class H> inline u16 half_neg(u16 a) { return a ^ 0x8000; }
template <class H> inline u16 half_abs(u16 a) { return a & 0x7fff; }

inline u32 pack(u16 low, u16 high) { return low | static_cast<u32>(high) << 16; }
inline u16 low(u32 packed) { return static_cast<u16>(packed); }
inline u16 high(u32 packed) { return static_cast<u16>(packed >> 16); }

// tf32: f32 with 10 bits of mantissa, rounded to nearest, ties away from zero (rna) or to even (rn).
inline u32 tf32_away(f32 x) { return is_nan(x) ? 0x7fffffffu : __builtin_isinf(x) ? bits<u32>(x) : (bits<u32>(x) + 0x1000u) & ~0x1fffu; }
inline u32 tf32_even(f32 x) {
    u32 raw = bits<u32>(x);
    return is_nan(x) ? 0x7fffffffu : __builtin_isinf(x) ? raw : (raw + 0xfffu + (raw >> 13 & 1)) & ~0x1fffu;
}

// --- conversions ----------------------------------------------------------------------------------------------------

inline f64 round_even(f64 x) { return __builtin_rint(x); }
inline f64 round_zero(f64 x) { return __builtin_trunc(x); }
inline f64 round_down(f64 x) { return __builtin_floor(x); }
inline f64 round_up(f64 x) { return __builtin_ceil(x); }

// Smallest and largest value of an integer type.
template <class I> constexpr bool kSigned = static_cast<I>(-1) < static_cast<I>(0);
template <class I> constexpr I kHighest = kSigned<I> ? static_cast<I>((static_cast<u128>(1) << (sizeof(I) * 8 - 1)) - 1) : static_cast<I>(-1);
template <class I> constexpr I kLowest = kSigned<I> ? static_cast<I>(-kHighest<I> - 1) : static_cast<I>(0);

// An integral f64 as an integer: clamped to the type's range; NaN is 0, and 1 << 63 for 64 bits.
template <class I>
inline I to_integer(f64 x) {
    if (is_nan(x)) return sizeof(I) == 8 ? static_cast<I>(1ull << 63) : 0;
    if (x <= static_cast<f64>(kLowest<I>)) return kLowest<I>;
    if (x >= static_cast<f64>(kHighest<I>)) return kHighest<I>;
    return static_cast<I>(x);
}
// cvt.sat between integers.
template <class To, class From>
inline To clamp_integer(From x) {
    s128 wide = static_cast<s128>(x);
    return wide < static_cast<s128>(kLowest<To>) ? kLowest<To> : wide > static_cast<s128>(kHighest<To>) ? kHighest<To> : static_cast<To>(x);
}
inline s32 saturate_s32(s64 x) { return clamp_integer<s32>(x); }

// --- integers -------------------------------------------------------------------------------------------------------

template <class I> inline I absolute(I x) { return x < 0 ? static_cast<I>(-x) : x; }
template <class I> inline I smaller(I a, I b) { return a < b ? a : b; }
template <class I> inline I larger(I a, I b) { return a > b ? a : b; }
template <class I, class Wide> inline I multiply_high(I a, I b) {
    return static_cast<I>(static_cast<Wide>(a) * static_cast<Wide>(b) >> (sizeof(I) * 8));
}
template <class I>
inline I divide(Thread& self, I a, I b, Site site) {
    if (!b) division_by_zero(self, site);
    return kSigned<I> && b == static_cast<I>(-1) ? static_cast<I>(0 - a) : static_cast<I>(a / b);  // the smallest / -1 wraps
}
template <class I>
inline I remainder(Thread& self, I a, I b, Site site) {
    if (!b) division_by_zero(self, site);
    return kSigned<I> && b == static_cast<I>(-1) ? static_cast<I>(0) : static_cast<I>(a % b);
}
// A shift by the width or more is not undefined here: it shifts everything out.
template <class I> inline I shift_left(I a, u32 by) { return by >= sizeof(I) * 8 ? static_cast<I>(0) : static_cast<I>(a << by); }
template <class I> inline I shift_right(I a, u32 by) {
    constexpr u32 last = sizeof(I) * 8 - 1;
    if (kSigned<I>) return static_cast<I>(a >> (by > last ? last : by));
    return by > last ? static_cast<I>(0) : static_cast<I>(a >> by);
}
inline u32 funnel_left(u32 a, u32 b, u32 by) { return by >= 32 ? a : static_cast<u32>(((static_cast<u64>(b) << 32 | a) << by) >> 32); }
inline u32 funnel_right(u32 a, u32 b, u32 by) { return static_cast<u32>((static_cast<u64>(b) << 32 | a) >> by); }

inline u32 count_ones(u64 x) { return static_cast<u32>(__builtin_popcountll(x)); }
template <class I> inline u32 leading_zeros(I x) { return x ? static_cast<u32>(__builtin_clzll(x)) - (64 - sizeof(I) * 8) : sizeof(I) * 8; }
template <class I> inline I reverse_bits(I x) {
    I result = 0;
    for (u32 i = 0; i < sizeof(I) * 8; i++) result = static_cast<I>(result << 1 | (x >> i & 1));
    return result;
}
// bfind: the highest bit that differs from the sign, or all ones where there is none.
template <class I> inline u32 find_bit(I x) {
    if (kSigned<I> && x < 0) x = static_cast<I>(~x);
    return x ? 63 - static_cast<u32>(__builtin_clzll(static_cast<u64>(x))) : ~0u;
}
template <class I> inline u32 find_bit_shift(I x) {
    u32 found = find_bit(x);
    return found == ~0u ? found : static_cast<u32>(sizeof(I) * 8 - 1) - found;
}
// bfe: bits [position, position + length), extended by the sign bit for signed types.
template <class I> inline I extract_bits(I a, u32 position, u32 length) {
    constexpr u32 last = sizeof(I) * 8 - 1;
    position &= 255, length &= 255;
    u32 sign_at = position + length - 1 < last ? position + length - 1 : last;
    bool sign = kSigned<I> && length && (static_cast<u64>(a) >> sign_at & 1);
    u64 result = 0;
    for (u32 i = 0; i <= last; i++) {
        bool bit = i < length && position + i <= last ? static_cast<u64>(a) >> (position + i) & 1 : sign;
        result |= static_cast<u64>(bit) << i;
    }
    return static_cast<I>(result);
}
template <class I> inline I insert_bits(I a, I b, u32 position, u32 length) {
    position &= 255, length &= 255;
    for (u32 i = 0; i < length && position + i < sizeof(I) * 8; i++) {
        I bit = static_cast<I>(static_cast<I>(1) << (position + i));
        b = i < sizeof(I) * 8 && a >> i & 1 ? static_cast<I>(b | bit) : static_cast<I>(b & ~bit);
    }
    return b;
}
// prmt: each of the four nibbles of `selector` picks a byte of b:a; its high bit copies that byte's sign instead.
inline u32 permute_bytes(u32 a, u32 b, u32 selector) {
    u64 both = static_cast<u64>(b) << 32 | a;
    u32 result = 0;
    for (int i = 0; i < 4; i++) {
        u32 nibble = selector >> (4 * i) & 15, byte = static_cast<u32>(both >> (8 * (nibble & 7))) & 255;
        if (nibble & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << (8 * i);
    }
    return result;
}
// lop3: bit i of `table` is the answer for inputs a = 4s, b = 2s, c = 1s digit of i.
inline u32 logic3(u32 a, u32 b, u32 c, u32 table) {
    u32 result = 0;
    for (u32 i = 0; i < 8; i++) {
        if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    }
    return result;
}

}  // namespace sim
