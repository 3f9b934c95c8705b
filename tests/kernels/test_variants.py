"""Every variant of this repository is proved right, at every dtype it has: found by path, nothing is listed here.

What takes minutes is proved by `make test-all`: torch.compile, which builds each shape anew (one of its variants is
proved always), PyTorch and naive C++ in bf16, fp16, and of GPU kernels, which the simulator runs, the naive ones, all
dtypes but bf16, and those of MINUTES. It also draws each shape twice, and so tries both ways of writing gradients on
it, tries each structured case on every shape, `make test` on two and both ways between them, and counts what moves: at
bf16, and of C++, which has loops of its own for it, at fp32 too. Else another dtype is another type of the same source.
"""

import pytest

from bench.core import variants
from bench.trial import prove
from bench.trial.judge import Judge
from bench.trial.room import Setting
from reference import contract

THREADS, ALONE = Setting(threads=2, time_limit=60), Setting(threads=1, time_limit=60)
VARIANTS = variants.discover()
# Fixed here, so that a test run can be repeated; `python -m bench.layer` draws a random one each time.
SEEDS = prove.seeds(1)

VECTORS = "cross_entropy", "layernorm", "residual_layernorm", "residual_rmsnorm", "rmsnorm", "softmax"
# Half a minute and more each in the simulator, or a kernel that another layer's proof runs too.
MINUTES = {
    ("attention", "cuda.mma"),
    ("attention", "cuda.shared"),
    ("attention", "cuda.wgmma"),  # tests/kernels/cuda/test_attention_wgmma.py proves it at fewer shapes
    ("attention", "triton.flash"),
    ("attention", "triton.hopper"),
    ("decode_attention", "cuda.shared"),  # tests/kernels/test_decoding.py proves these, and gemv's, at fewer shapes
    ("decode_attention", "triton.splits"),
    ("embedding", "triton.sorted"),
    ("fused_classifier", "cuda.shared"),  # cross_entropy's own
    ("fused_classifier", "triton.online"),
    ("gemv", "cuda.shared"),
    ("layernorm", "triton.rows"),  # tests/kernels/test_layernorm_backward.py tries its longest way
    ("matmul", "cuda.shared"),
    ("matmul", "cuda.mma"),  # tests/kernels/cuda/test_tensor_core_matmuls.py proves these two at smaller shapes
    ("matmul", "cuda.wgmma"),
    ("matmul", "triton.persistent"),
    ("matmul", "triton.splitk"),
    ("matmul", "triton.tiled"),
    ("q8_matmul", "triton.groups"),
    ("residual_layernorm", "cuda.shared"),  # layernorm's own, and an addition
    *((layer, "cuda.vector") for layer in VECTORS),  # tests/kernels/cuda/test_vector.py tries their rows
    ("residual_layernorm", "triton.rows"),
    ("residual_rmsnorm", "cuda.shared"),  # rmsnorm's backward, and forward is vector's without its loop
    ("residual_rmsnorm", "triton.rows"),  # rmsnorm's, likewise
    ("rmsnorm", "triton.rows"),  # as layernorm's
    ("sampling", "cuda.shared"),  # tests/kernels/test_sampling.py tries these two at fewer shapes
    ("sampling", "triton.bits"),
    ("softmax", "triton.rows"),
}


@pytest.fixture(scope="module")
def judge():
    with Judge() as judge:
        yield judge


def parameters():
    for v in VARIANTS:
        for dtype in ("fp32", "bf16", "fp16"):
            if dtype in v.dtypes:
                marks = [pytest.mark.slow] if slow(v, dtype) else []
                yield pytest.param(v, dtype, id=f"{v.layer}-{v.name}-{dtype}", marks=marks)


def slow(v: variants.Variant, dtype: str) -> bool:
    compiled = v.name == "torch.compile" and v.layer != "residual"
    simulated = v.gpu_code and (v.stem == "naive" or dtype != "bf16" or (v.layer, v.name) in MINUTES)
    plain = v.backend == "torch" or v.name == "cpu.naive"
    return compiled or dtype == "fp16" or simulated or (plain and dtype != "fp32")


def is_thorough(v: variants.Variant, dtype: str) -> bool:
    """Whether `make test-all` tries more at this dtype; always what is tried on two shapes alone."""
    own_loops = v.backend == "cpu" and dtype == "fp32"
    return dtype == "bf16" or "bf16" not in v.dtypes or own_loops or variants.builds_each_shape(v)


@pytest.mark.parametrize(("variant", "dtype"), list(parameters()))
def test_variant_is_right(variant, dtype, judge, request):
    if reason := variants.unavailable(variant, "cpu", dtype):
        pytest.skip(reason)
    yardstick = variants.find(VARIANTS, variant.layer, "torch.eager")
    phases = tuple(p for p in contract.PHASES if variant.has(p))
    thorough = "not slow" not in request.config.option.markexpr and is_thorough(variant, dtype)
    seeds = SEEDS if thorough else SEEDS[:1]  # of which the others' structured cases are, and their truth
    setting = (
        THREADS if variant.backend == "cpu" else ALONE
    )  # PyTorch's threads are not ours, a simulated kernel has one
    proofs = prove.prove(variant, phases, dtype, seeds, judge, setting, yardstick, thorough=thorough, count=thorough)
    for found in proofs:
        if found.status == "skipped":
            pytest.skip(found.evidence)
        assert found.ok, f"{found.phase}: {found.evidence}"
        assert found.cases >= len(contract.load(variant.layer).CASES) + 2
