// Constants, and the special-function unit's own functions: an instruction each, to about one unit in fp32's last place.
#pragma once

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LOWEST = -3.4028234663852886e38f;  // finite, so that LOWEST - LOWEST is 0 and not NaN

// 2^x; 0 for x below -126, infinity above 128. PTX ISA, "Floating Point Instructions: ex2".
__device__ inline float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1/x, for x whose reciprocal is a normal number. PTX ISA, "Floating Point Instructions: rcp.approx.ftz".
__device__ inline float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// e^x. The product's rounding costs |x| 2^-24 of the result: nothing where x is a score below its row's largest.
__device__ inline float exp_approx(float x) { return exp2_approx(x * LOG2_E); }
