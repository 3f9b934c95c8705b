// The working dtype `T`: float, __nv_bfloat16 or __half. All arithmetic is fp32.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

// Rounds to nearest even.
template <typename T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) { return x; }
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16(x); }
template <>
__device__ inline __half from_float<__half>(float x) { return __float2half(x); }

// Two neighbours at once, at an address that is a multiple of four bytes. A bf16 is the upper half of its float.
__device__ inline float2 to_float_pair(const __nv_bfloat16* from) {
    unsigned both = *reinterpret_cast<const unsigned*>(from);
    return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000)};
}
__device__ inline float2 to_float_pair(const __half* from) {
    return __half22float2(*reinterpret_cast<const __half2*>(from));
}
__device__ inline void from_float_pair(__nv_bfloat16* to, float first, float second) {
    *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(first, second);
}
__device__ inline void from_float_pair(__half* to, float first, float second) {
    *reinterpret_cast<__half2*>(to) = __floats2half2_rn(first, second);
}
