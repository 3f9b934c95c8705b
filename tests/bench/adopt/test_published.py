"""Kernels as people publish them: what a launch in a main, a struct, an order of sizes or a Python launcher says."""

import pytest

from bench.adopt.cuda import adopted
from bench.adopt.uses import uses_of
from bench.adopt.variant import DECIDE, Guess
from kernels.cuda.cplusplus import lex
from tests.bench.adopt.test_adopt import taken

ADD = "__global__ void add(float* out, const float* a, const float* b, int N) { out[0] = a[0] + b[0]; }\n"


def read(folder, name, layer, text):
    """(the text of the variant's file, what is to be decided)."""
    _, made, decide = taken(folder, name, layer, text, tries=False)
    return made, decide


def without_masks(decide):
    return [line for line in decide if "causal" not in line]


def test_a_folder_that_is_called_like_a_source_is_no_neighbour(tmp_path):
    folder = tmp_path / "alone" / "here"  # other tests' files lie two folders above
    (folder / "llama2.cu").mkdir(parents=True)
    _, decide = read(folder, "add.cu", "residual", ADD)
    assert {line.partition(" ")[0] for line in decide} == {"block", "grid"}


LAUNCHER = "void add1(int N, const int block_size) { add<<<ceil_div(N, block_size), block_size>>>(out, a, b, N); }\n"
BETWEEN = "void run(int kind, int N, int block_size) { switch (kind) { case 1: add1(N, block_size); } }\n"


@pytest.mark.parametrize(
    ("main", "block"),
    [
        ("int sizes[] = {32, 256, 1024}; for (int j = 0; j < 3; j++) { int bs_block = sizes[j]; CALL }", "256"),
        ("int sizes[] = {64, 128}; for (int j = 0; j < 2; j++) { int bs_block = sizes[j]; CALL }", "64"),
        ("const int bs_block = 512; CALL", "512"),
        ("int bs_block = best(); CALL", None),
    ],
)
def test_threads_of_a_block_are_those_that_a_main_tries(tmp_path, main, block):
    text = ADD + LAUNCHER + BETWEEN + f"int main() {{ {main.replace('CALL', 'run(1, n, bs_block);')} }}"
    made, decide = read(tmp_path, "add.cu", "residual", text)
    assert f"forward_kernel(grid=blocks(N, {block}), block={block})" in made if block else "block=block_size" in made
    assert bool(decide) == (block is None)


def test_a_block_that_the_runtime_is_asked_for_is_no_zero(tmp_path):
    launch = """void run(int N) { int grid = 0, block = 0;
        cudaOccupancyMaxPotentialBlockSize(&grid, &block, add, 0, 0);
        grid = (N + block - 1) / block; add<<<grid, block>>>(out, a, b, N); }"""
    made, decide = read(tmp_path, "add.cu", "residual", ADD + launch)
    assert "block = 256" in made and "grid = (N + block - 1) // block" in made and decide == []


ROW = "__global__ void norm(const float* in, float* out, int N) { out[0] = in[0]; }\n"


@pytest.mark.parametrize(
    ("launch", "one"),
    [
        ("void solve(const float* in, float* out, int N) { norm<<<1, 256>>>(in, out, N); }", True),
        ("void solve(float* in, float* out, int N) { int n = (N + 255) / 256; norm<<<n, 256>>>(in, out, N); }", True),
        ("void solve(const float* in, float* out, int M, int N) { norm<<<M, 256>>>(in, out, N); }", False),
    ],
)
def test_one_length_is_a_row_and_all_of_it_where_the_grid_says_no_more(tmp_path, launch, one):
    made, decide = read(tmp_path, "norm.cu", "softmax", ROW + launch)
    assert ('raise Unavailable("several rows")' in made) == one and "launch(x, out, S)" in made
    assert without_masks(decide) == []


@pytest.mark.parametrize(
    ("told", "launch", "given"),
    [
        ("half", "int half = N / 2; gate<<<half / 256 + 1, 256>>>(in, out, half);", "half = (2 * H) // 2"),
        ("N", "gate<<<(N / 2 + 255) / 256, 256>>>(in, out, N);", "launch(x, out, 2 * H)"),
    ],
)
def test_gate_and_up_of_one_row_are_as_long_as_is_halved(tmp_path, told, launch, given):
    kernel = f"__global__ void gate(const float* in, float* out, int {told}) {{ out[0] = in[0]; }}\n"
    text = kernel + f"void solve(const float* in, float* out, int N) {{ {launch} }}"
    made, decide = read(tmp_path, "gate.cu", "swiglu", text)
    assert given in made and 'raise Unavailable("several rows")' in made and decide == []


@pytest.mark.parametrize(
    ("order", "given"), [("int N, int M", "R, S"), ("int M, int N", "R, S"), ("int N, int C", "R, S")]
)
def test_of_two_letters_the_first_has_the_rows(tmp_path, order, given):
    kernel = f"__global__ void norm(const float* in, float* out, {order}) {{ out[0] = in[0]; }}\n"
    names = order.replace("int ", "")
    made, decide = read(tmp_path, "norm.cu", "softmax", kernel + f"void go() {{ norm<<<8, 8>>>(in, out, {names}); }}")
    assert f"launch(x, out, {given})" in made and without_masks(decide) == []


@pytest.mark.parametrize(("order", "given"), [("N, K, M", "M, K, N"), ("M, N, K", "M, N, K"), ("M, K, N", "M, K, N")])
def test_a_product_of_n_by_k_and_k_by_m_is_one_of_m_by_n(tmp_path, order, given):
    told = ", ".join(f"int {name}" for name in order.split(", "))
    kernel = f"__global__ void mul(float* A, float* B, float* C, {told}) {{ C[0] = A[0] * B[0]; }}\n"
    made, decide = read(tmp_path, "mul.cu", "matmul", kernel + f"void go() {{ mul<<<8, 8>>>(A, B, C, {order}); }}")
    assert f"launch(x, weight, out, {given})" in made and decide == []


@pytest.mark.parametrize(
    ("layer", "refused"),
    [
        ("matmul", "if len({*x.shape, *weight.shape}) > 1:"),
        ("gemv", "if x.shape[0] > 1 or len({*weight.shape}) > 1:"),
    ],
)
def test_a_kernel_that_takes_one_length_of_a_product_is_given_no_other(tmp_path, layer, refused):
    kernel = "__global__ void mul(float* x, float* w, float* out, int N) { out[0] = x[0] * w[0]; }\n"
    made, decide = read(tmp_path, "mul.cu", layer, kernel + "void go(int N) { mul<<<N, N>>>(x, w, out, N); }")
    assert refused in made and 'raise Unavailable("matrices that are not square")' in made and decide == []


STRUCT = """struct Task { const float* src; float *dst; int rows, cols; };
static constexpr int THREADS = 128, WARPS = 4;
__global__ void norm(Task task) {
    for (int i = threadIdx.x; i < task.cols; i += THREADS) task.dst[i] = task.src[i];
}
void go(Task task) {
    int bytes = task.cols * sizeof(float);
    norm<<<task.rows, THREADS + WARPS, bytes>>>(task);
}
"""
MATRICES = """typedef struct { int width; int height; float* elements; } Matrix;
__global__ void mul(const Matrix A, const Matrix B, Matrix C) {
    int row = blockIdx.y * 16 + threadIdx.y, col = blockIdx.x * 16 + threadIdx.x;
    float sum = 0;
    for (int k = 0; k < A.width; k++) sum += A.elements[row * A.width + k] * B.elements[k * B.width + col];
    C.elements[row * C.width + col] = sum;
}
void go(const Matrix A, const Matrix B, Matrix C) {
    Matrix d_A, d_B, d_C;
    dim3 block(16, 16), grid(B.width / 16, A.height / 16);
    mul<<<grid, block>>>(d_A, d_B, d_C);
}
"""


def test_what_is_in_a_struct_are_parameters(tmp_path):
    made, decide = read(tmp_path, "norm.cu", "softmax", STRUCT)
    assert "launch((x, out, R, S,))" in made and without_masks(decide) == []
    assert "grid=R, block=128 + 4, shared=bytes" in made and "bytes = S * 4" in made


def test_matrices_by_value_are_tensors_and_their_sides(tmp_path):
    made, decide = read(tmp_path, "mul.cu", "matmul", MATRICES)
    assert "launch((K, M, x,), (N, K, weight,), (N, M, out,))" in made and decide == []
    assert "grid = (N // 16, M // 16)" in made


def test_a_struct_that_is_more_than_numbers_and_pointers_is_for_a_person(tmp_path):
    _, decide = read(tmp_path, "norm.cu", "softmax", STRUCT.replace("int rows, cols;", "int rows, cols, more[4];"))
    assert any("no parameter for x" in line for line in decide)


def test_threads_and_outputs_that_a_kernel_lacks_are_refused(tmp_path):
    kernel = """__global__ void mul(const float* A, const float* B, const float* bias, float* C, int M, int N, int K) {
        C[0] = A[0] * B[0] + bias[0]; }
    void go() { mul<<<M, N>>>(A, B, bias, C, M, N, K); }"""
    made, decide = read(tmp_path, "mul.cu", "matmul", kernel)
    assert 'if bias is None:\n        raise Unavailable("no bias")' in made
    assert 'if N > 1024:\n        raise Unavailable("more threads than a block has")' in made and decide == []
    (tmp_path / "into" / "cuda" / "matmul" / "mul.py").unlink()
    made, _ = read(tmp_path, "mul.cu", "matmul", kernel.replace("+ bias[0]", "+ (bias ? bias[0] : 0)"))
    assert "no bias" not in made
    use = uses_of(list(lex("{ if (p != nullptr) v = p[0]; }")), ["p"])["p"]
    assert use.asked and use.reads and not use.writes


def test_probabilities_are_no_logits_and_targets_may_be_of_any_width(tmp_path):
    kernel = """__global__ void loss(float* losses, const float* NAME, const size_t* targets, int B, int T, int V) {
        losses[0] = NAME[0] + targets[0]; }
    void go() { loss<<<B, T>>>(losses, NAME, targets, B, T, V); }"""
    made, decide = read(tmp_path, "loss.cu", "cross_entropy", kernel.replace("NAME", "pred"))
    assert "launch(losses, logits, targets, B, T, V)" in made and decide == []
    (tmp_path / "into" / "cuda" / "cross_entropy" / "loss.py").unlink()
    _, decide = read(tmp_path, "loss.cu", "cross_entropy", kernel.replace("NAME", "probs"))
    assert any("probs, which is none of" in line for line in decide)


def test_what_is_left_over_is_the_output_where_a_norm_keeps_nothing(tmp_path):
    kernel = """__global__ void norm(float* A, float* B, int dim, float* gamma, float* beta) {
        B[0] = A[0] * gamma[0] + beta[0]; }
    void go() { norm<<<rows, 64>>>(A, B, dim, gamma, beta); }"""
    made, decide = read(tmp_path, "norm.cu", "layernorm", kernel)
    assert "launch(x, out, C, weight, bias)" in made and decide == [] and "left_kernel" in made


def test_who_adds_to_a_gradient_adds_to_zeros_or_to_what_is_there(tmp_path):
    kernel = """__global__ void back(float* dwte, float* dwpe, const float* dout, const int* inp, int B, int T, int C) {
        atomicAdd(&dwte[inp[0]], dout[0]); WPE }
    void go() { back<<<B, T>>>(dwte, dwpe, dout, inp, B, T, C); }"""
    made, decide = read(tmp_path, "back.cu", "embedding", kernel.replace("WPE", "atomicAdd(&dwpe[0], dout[0]);"))
    assert "dwte if accumulate else zeroed(dwte)" in made and "accumulation" not in made and decide == []
    (tmp_path / "into" / "cuda" / "embedding" / "back.py").unlink()
    made, decide = read(tmp_path, "back.cu", "embedding", kernel.replace("WPE", "dwpe[0] = dout[0];"))
    assert any(line.startswith("if accumulate:") for line in decide) and 'raise Unavailable("accumulation")' in made


def test_an_optimizer_without_decay_is_tried_without(tmp_path):
    kernel = """__global__ void adam(float* w, float* grads, float* m, float* v, int N, float lr, float eps, int t) {
        m[0] += grads[0]; v[0] += grads[0]; w[0] -= lr * m[0] / v[0]; }
    void go() { adam<<<N, 64>>>(w, grads, m, v, N, lr, eps, t); }"""
    made, decide = read(tmp_path, "adam.cu", "adamw", kernel)
    assert 'if any(weight_decays):\n        raise Unavailable("weight decay")' in made and decide == []
    assert "(scaled, grads[i], Loaded(grad_scale), n)" in made and "launch(params[i], scaled, m[i], v[i]" in made


def test_macros_of_a_hosts_compiler_are_there(tmp_path):
    made, _ = read(tmp_path, "norm.cu", "softmax", ROW.replace("in[0]", "in[0] - __FLT_MAX__"))
    assert "norm_defined.cu" in made
    entered = tmp_path / "into" / "cuda" / "softmax" / "norm" / "norm_defined.cu"
    assert entered.read_text().startswith("#define __FLT_MAX__ 3.4028")


def test_a_weight_in_half_precision_is_turned_by_a_kernel_that_knows_it(tmp_path):
    kernel = (
        "#include <cuda_fp16.h>\n__global__ void mul(half* A, half* B, half* C, int M, int N, int K) { C[0] = A[0]; }"
    )
    (tmp_path / "mul.cu").write_text(kernel)
    made = adopted(tmp_path / "mul.cu", "matmul", "mul", "mul", guess=Guess(turned=True))
    (ours,) = (content for path, content in made.files.items() if path.name == "left.cu")
    assert b"#include <cuda_fp16.h>" in ours and b"turned" in ours


WARMED = """
import torch
import triton
import triton.language as tl

properties = triton.runtime.driver.active.utils.get_device_properties(0)
SIZE_SMEM = properties["max_shared_mem"]
kernels = {}

@triton.jit
def warmed(out, x, x_stride, out_stride, n_rows, n_cols, BLOCK: tl.constexpr, num_stages: tl.constexpr):
    for row in tl.range(tl.program_id(0), n_rows, tl.num_programs(0), num_stages=num_stages):
        i = tl.arange(0, BLOCK)
        value = tl.load(x + row * x_stride + i, mask=i < n_cols, other=-float("inf"))
        e = tl.exp(value - tl.max(value, axis=0))
        tl.store(out + row * out_stride + i, e / tl.sum(e, axis=0), mask=i < n_cols)

def softmax(x):
    n_rows, n_cols = x.shape
    BLOCK = triton.next_power_of_2(n_cols)
    num_stages = 4 if SIZE_SMEM > 200000 else 2
    y = torch.empty_like(x)
    kernel = warmed.warmup(
        y, x, x.stride(0), y.stride(0), n_rows, n_cols, BLOCK=BLOCK, num_stages=num_stages, grid=(1,)
    )
    kernel._init_handles()
    programs = min(SIZE_SMEM // kernel.metadata.shared, n_rows)
    kernel[(programs, 1, 1)](y, x, x.stride(0), y.stride(0), n_rows, n_cols)
    return y
"""
GIVEN = """
import torch
import triton
import triton.language as tl

@triton.jit
def one(out, x, n, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr, bias=None):
    i = tl.arange(0, BLOCK)
    tl.store(out + tl.program_id(0) * n + i, tl.load(x + tl.program_id(0) * n + i, mask=i < n), mask=i < n)

def run(x, implementation, size=None):
    y = torch.empty_like(x)
    rows = x.reshape(-1, x.shape[-1])
    implementation[(rows.shape[0],)](y, rows, n=rows.shape[1], HAS_BIAS=False, BLOCK=size, bias=None)
    return y
"""


def test_a_kernel_that_is_warmed_up_is_launched_and_what_it_is_asked_is_marked(tmp_path):
    made, decide = read(tmp_path, "warmed.py", "softmax", WARMED)
    assert "BLOCK=BLOCK" in made and "BLOCK = triton.next_power_of_2(n_cols)" in made and "SIZE_SMEM" not in made
    assert [line.partition(" ")[0] for line in without_masks(decide)] == ["grid"]


def test_a_kernel_that_a_function_is_given_is_launched_as_that_does(tmp_path):
    made, decide = read(tmp_path, "one.py", "softmax", GIVEN)
    assert "one[(rows.shape[0],)](y, rows, rows.shape[1], HAS_BIAS=False" in made
    assert [line.partition(" ")[0] for line in without_masks(decide)] == ["BLOCK"]  # None, unless a caller says
    (tmp_path / "into" / "triton" / "softmax" / "one.py").unlink()
    made, _ = read(tmp_path, "one.py", "softmax", GIVEN.replace(", bias=None)\n    return", ")\n    return"))
    assert "launched by guesses" in made  # it is some other kernel's


HEADS = """
import torch
import triton
import triton.language as tl

@triton.jit
def attend(Q, K, V, M, Out, stride_h, stride_t, seq, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr):
    t, head = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, BLOCK)
    c = tl.arange(0, HEAD_DIM)
    place = head * stride_h + (t * BLOCK + i)[:, None] * stride_t + c[None, :]
    q = tl.load(Q + place)
    p = tl.exp(tl.dot(q, tl.trans(tl.load(K + place))))
    p = p.to(tl.float16)
    tl.store(Out + place, tl.dot(p, tl.load(V + place)))
    tl.store(M + head * seq + t * BLOCK + i, tl.sum(p, 1))

def run(q, k, v):
    BATCH, N_HEADS, SEQ, DIM = q.shape
    o = torch.empty_like(q)
    M = torch.empty((BATCH, N_HEADS, SEQ), device=q.device, dtype=torch.float32)
    attend[(SEQ // 64, N_HEADS)](q, k, v, M, o, k.stride(1), k.stride(2), SEQ, BLOCK=64, HEAD_DIM=DIM)
    return o
"""


def test_heads_of_all_are_where_those_of_one_are_and_a_product_in_fp16_is_proved_in_that(tmp_path):
    made, decide = read(tmp_path, "attend.py", "attention", HEADS.replace("N_HEADS", "NUM_HEADS"))
    assert all(f"{name}_ = {name}.transpose(1, 2)" in made for name in "qkv")
    assert not any("second axis" in line for line in decide)
    assert 'DTYPES = ("fp16",)' in made and 'raise Unavailable("grouped queries")' in made
    (tmp_path / "into" / "triton" / "attention" / "attend.py").unlink()
    made, _ = read(tmp_path, "attend.py", "attention", HEADS.replace("seq", "kv_heads"))
    assert "grouped queries" not in made


def test_what_is_compared_with_is_a_number_though_a_tensor_goes_by_its_name(tmp_path):
    text = HEADS.replace("M + head", "Out + head").replace("place = ", "inside = i < M\n    place = ")
    made, _ = read(tmp_path, "attend.py", "attention", text)
    assert "launched by" in made or "launched as" in made
    assert not any(f"M, which is none of {DECIDE}" in line for line in made.splitlines())


def test_block_pointers_that_triton_has_no_more_are_there_or_told(tmp_path, monkeypatch):
    import triton.language as tl

    from bench.adopt import older

    text = HEADS.replace("q = tl.load(Q + place)", "q = tl.load(tl.make_block_ptr(Q, (1,), (1,), (0,), (1,), (0,)))")
    monkeypatch.setattr(tl.make_block_ptr, "__doc__", "Block pointers have been removed.")
    made, decide = read(tmp_path, "attend.py", "attention", text)
    assert older.LANGUAGE in made and (tmp_path / "into" / "triton" / "attention" / older.NAME).is_file()
    (tmp_path / "into" / "triton" / "attention" / "attend.py").unlink()
    other = text.replace("import triton.language as tl", "from triton import language as tl")
    _, decide = read(tmp_path, "attend.py", "attention", other)
    assert any("has no more" in line for line in decide)
    (tmp_path / "into" / "triton" / "attention" / "attend.py").unlink()
    monkeypatch.setattr(tl.make_block_ptr, "__doc__", "Makes one.")
    made, decide = read(tmp_path, "attend.py", "attention", text)
    assert older.LANGUAGE not in made and not any("has no more" in line for line in decide)
