// A list passed by value: kernel(…)(…, [a, b, c], …) for a parameter `const __grid_constant__ Many<T*, N> list`.
#pragma once

template <typename Element, int N>
struct Many {
    Element at[N];
    __device__ const Element& operator[](int i) const { return at[i]; }
};

// The tensor whose chunks begin at or before `chunk`: the last t with firsts[t] <= chunk.
template <int TENSORS>
__device__ int tensor_of(const Many<int, TENSORS>& firsts, int chunk) {
    int low = 0, high = TENSORS - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (firsts[middle] <= chunk)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}
