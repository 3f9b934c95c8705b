#include "amx.hpp"
#include "gelu.hpp"

// amx.py asks for this much, and N doubles more for the sums of dbias.
constexpr int64_t PACKING_BYTES = 24 << 20;
static_assert(AMX_WORKSPACE <= PACKING_BYTES, "amx.py asks for too little");

// out[M, N] = x[M, K] weight[N, K]^T (+ bias), through GELU where pre_gelu is wanted.
EXPORT void matmul_forward(T* out, T* pre_gelu, const T* x, const T* weight, const T* bias, int64_t M, int64_t N,
                           int64_t K, void* workspace) {
    gemm_amx(M, N, K, {x, K, 1}, {weight, K, 1}, nullptr, workspace, [=](int64_t i, int64_t j, int64_t n, vec value) {
        if (bias) value += load_part(bias + j, n);
        if (pre_gelu) {
            store_part(pre_gelu + i * N + j, value, n);
            value = gelu16(value);
        }
        store_part(out + i * N + j, value, n);
    });
}

// dx[M, K] = dout[M, N] weight[N, K] (times gelu'(x_pre_gelu)); dweight[N, K] = dout^T x; dbias = column sums of dout.
EXPORT void matmul_backward(T* dx, T* dweight, T* dbias, const T* dout, const T* x, const T* weight,
                            const T* x_pre_gelu, int64_t M, int64_t N, int64_t K, int64_t accumulate,
                            float* workspace) {
    const Operand columns{weight, 1, K};
    gemm_amx(M, K, N, {dout, N, 1}, columns, nullptr, workspace, [=](int64_t i, int64_t k, int64_t n, vec value) {
        if (x_pre_gelu) value *= gelu_grad16(load_part(x_pre_gelu + i * K + k, n));
        store_part(dx + i * K + k, value, n);
    });
    double* sums = dbias ? (double*)(workspace + PACKING_BYTES / sizeof(float)) : nullptr;
    gemm_amx(N, K, M, {dout, 1, N}, {x, 1, K}, sums, workspace, [=](int64_t i, int64_t k, int64_t n, vec value) {
        T* to = dweight + i * K + k;
        store_part(to, accumulate ? load_part(to, n) + value : value, n);
    });
    if (dbias)
        for (int64_t i = 0; i < N; i++) store(dbias + i, float(accumulate ? load(dbias + i) + sums[i] : sums[i]));
}
