// Halves and bf16 as cuda_fp16.hpp and cuda_bf16.hpp use them now and then.
#pragma once
#include "arithmetic.hpp"

namespace sim {

template <class H>
inline u16 half_relu(u16 x) {
    return is_nan(H::decode(x)) ? x : H::decode(x) > 0 ? x : u16{0};
}

// x, a float or an integer, rounded in one direction: the nearest, or its neighbour where that lies on the other side.
template <class H, Toward way, class T>
inline u16 half_toward(T x) {
    const long double exact = static_cast<long double>(x);  // has all 64 bits of an integer
    u16 nearest = H::round(static_cast<f64>(x));
    const long double found = static_cast<long double>(H::decode(nearest));
    const bool down = way == Toward::Down || (way == Toward::Zero && exact > 0);
    if (!(down ? found > exact : found < exact) || (way == Toward::Zero && exact == 0)) return nearest;
    const bool negative = nearest >> 15;
    if ((nearest & 0x7fff) == 0) return down ? 0x8001 : 0x0001;
    return static_cast<u16>(negative == down ? nearest + 1 : nearest - 1);
}

}  // namespace sim
