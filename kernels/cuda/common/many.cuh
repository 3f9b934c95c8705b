// A list passed by value: kernel(…)(…, [a, b, c], …) for a parameter `const __grid_constant__ Many<T*, N> list`.
#pragma once

template <typename Element, int N>
struct Many {
    Element at[N];
    __device__ const Element& operator[](int i) const { return at[i]; }
};
