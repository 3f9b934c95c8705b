"""ldmatrix, stmatrix and mma.sync against plain formulas, with fragments laid out as the PTX manual's figures say."""

from dataclasses import dataclass

import pytest
import torch

from bench.simulate import SimulationError, count, instructions_tensor
from bench.simulate.ptx import parse
from bench.simulate.translate import find_line
from tests.bench.simulate.devices import HERE, compiled, launch, on_a_card
from tests.bench.simulate.hopper_cases import NAMES as HOPPER_NAMES

LANES = torch.arange(32)
MATRIX_KERNELS = [f"{way}_rows<{n}, {t}>" for way in ("load", "store") for n in (1, 2, 4) for t in ("false", "true")]


@dataclass(frozen=True)
class MmaCase:
    kernel: str
    dtype: torch.dtype  # of A and B; float32 stands for tf32
    k: int
    half_sums: bool = False
    b_dtype: torch.dtype | None = None  # where it is another
    rows: int = 16

    @property
    def whole(self) -> bool:
        return not self.dtype.is_floating_point

    @property
    def sums(self) -> torch.dtype:
        if self.whole:
            return torch.int32
        return torch.float16 if self.half_sums else self.dtype if self.dtype == torch.float64 else torch.float32


MMA_CASES = [
    MmaCase("mma_bf16_k16", torch.bfloat16, 16),
    MmaCase("mma_bf16_k8", torch.bfloat16, 8),
    MmaCase("mma_f16_k16", torch.float16, 16),
    MmaCase("mma_f16_k8", torch.float16, 8),
    MmaCase("mma_tf32_k8", torch.float32, 8),
    MmaCase("mma_tf32_k4", torch.float32, 4),
    MmaCase("mma_f16_k16_f16", torch.float16, 16, half_sums=True),
    MmaCase("mma_f16_k8_f16", torch.float16, 8, half_sums=True),
    MmaCase("mma_s8", torch.int8, 32),
    MmaCase("mma_s8_u8_saturated", torch.int8, 32, b_dtype=torch.uint8),
    MmaCase("mma_u8_s8_k16", torch.uint8, 16, b_dtype=torch.int8),
    MmaCase("mma_s8_8_rows", torch.int8, 16, rows=8),
    MmaCase("mma_e4m3", torch.float8_e4m3fn, 32),
    MmaCase("mma_e5m2_e4m3", torch.float8_e5m2, 32, b_dtype=torch.float8_e4m3fn),
    MmaCase("mma_f64_8_rows", torch.float64, 4, rows=8),
    MmaCase("mma_f64", torch.float64, 8),
]
ERRORS = {
    "mma_without_a_lane": "warp operation",
    "misaligned_row": "misaligned",
    "row_never_written": "uninitialised",
}
BANKS = ("rows_in_banks<false>", "rows_in_banks<true>")
NAMES = (*MATRIX_KERNELS, "matrices_by_generic_address", *(c.kernel for c in MMA_CASES), *ERRORS, *BANKS)


def run(kernel: str, out: torch.Tensor, *args, **options) -> torch.Tensor:
    launch("tensor.cu", NAMES, kernel, [out, *args], block=32, **options)
    return out


def words(tensor: torch.Tensor) -> torch.Tensor:
    """A matrix as its rows' 32-bit words; doubles as they are."""
    return tensor.contiguous().view(torch.int64 if tensor.dtype == torch.float64 else torch.int32)


# --- mma.sync --------------------------------------------------------------------------------------------------------


def a_fragment(a: torch.Tensor) -> torch.Tensor:
    """[register][lane] of a 16-row A: rows lane / 4 and 8 below, then the same 4 words right of it; 8 rows: as B's."""
    w = words(a)
    if len(a) == 8:
        return b_fragment(a)
    return torch.stack([w[LANES // 4 + r % 2 * 8, LANES % 4 + r // 2 * 4] for r in range(w.shape[1] // 2)])


def b_fragment(b: torch.Tensor) -> torch.Tensor:
    """Of an 8-column B, given transposed as [n][k]."""
    w = words(b)
    return torch.stack([w[LANES // 4, LANES % 4 + r * 4] for r in range(w.shape[1] // 4)])


def c_fragment(c: torch.Tensor) -> torch.Tensor:
    if c.dtype == torch.float16:
        return torch.stack([words(c)[LANES // 4 + r * 8, LANES % 4] for r in range(2)])
    return torch.stack([words(c)[LANES // 4 + r // 2 * 8, LANES % 4 * 2 + r % 2] for r in range(len(c) // 4)])


def mma_inputs(case: MmaCase, whole_numbers: bool):
    generator = torch.Generator().manual_seed(11)

    def draw(*shape: int) -> torch.Tensor:
        if whole_numbers:
            return torch.randint(-8, 9, shape, generator=generator).float()
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    kinds = (case.dtype, case.b_dtype or case.dtype, case.sums)
    shapes = ((case.rows, case.k), (8, case.k), (case.rows, 8))
    if case.whole:  # all values there are; sums near both ends
        ends = [torch.iinfo(kind) for kind in kinds[:2]]
        operands = [torch.randint(e.min, e.max + 1, s, generator=generator) for e, s in zip(ends, shapes, strict=False)]
        sums = torch.randint(2**31 - 9999, 2**31 + 9999, shapes[2], generator=generator)
        return tuple(x.to(kind) for x, kind in zip((*operands, sums), kinds, strict=True))
    return tuple(draw(*shape).to(kind) for shape, kind in zip(shapes, kinds, strict=True))


def run_mma(case: MmaCase, a, b, c, device="cpu") -> torch.Tensor:
    fragments = torch.cat([a_fragment(a), b_fragment(b), c_fragment(c)]).contiguous().to(device)
    registers = case.rows // (8 if case.half_sums else 4)
    out = torch.zeros(registers, 32, dtype=fragments.dtype, device=device)
    return run(case.kernel, out, fragments).cpu()


def tf32(x: torch.Tensor) -> torch.Tensor:
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32) if x.dtype == torch.float32 else x


def mma_formula(a, b, c, saturated=False) -> torch.Tensor:
    if c.dtype == torch.int32:
        exact = a.long() @ b.long().T + c.long()
        return (exact.clamp(-(2**31), 2**31 - 1) if saturated else exact).to(torch.int32)
    return tf32(a).double() @ tf32(b).double().T + c.double()


@pytest.mark.parametrize("case", MMA_CASES, ids=lambda c: c.kernel)
def test_mma_is_exact_for_whole_numbers(case):
    a, b, c = mma_inputs(case, whole_numbers=True)
    wanted = mma_formula(a, b, c, "saturated" in case.kernel)
    assert torch.equal(run_mma(case, a, b, c), c_fragment(wanted.to(c.dtype)))
    if case.whole:  # else wrapping and staying at the ends would not be told apart
        assert not torch.equal(mma_formula(a, b, c, True), mma_formula(a, b, c))


@pytest.mark.parametrize("case", MMA_CASES[-8:], ids=lambda c: c.kernel)
@pytest.mark.parametrize("of_b", (False, True), ids="ab")
def test_one_element_is_one_row_or_column(case, of_b):
    """A fragment whose lanes were exchanged would pass on to another one."""
    operands = list(mma_inputs(case, whole_numbers=True)[:2])
    none = torch.zeros(case.rows, 8, dtype=case.sums)
    before, at = run_mma(case, operands[0], operands[1], none), (5, case.k - 1)
    other = operands[of_b].double()
    change = (0 if other[at] else 1) - other[at]
    other[at] += change
    operands[of_b] = other.to(operands[of_b].dtype)
    wanted = none.double()
    (wanted.T if of_b else wanted)[5] = change * operands[not of_b][:, at[1]].double()
    assert wanted.any()
    assert torch.equal(run_mma(case, operands[0], operands[1], none) != before, c_fragment(wanted.to(none.dtype)) != 0)


@pytest.mark.parametrize("case", [c for c in MMA_CASES if not c.whole], ids=lambda c: c.kernel)
def test_mma_is_rounded_once(case):
    a, b, c = mma_inputs(case, whole_numbers=False)
    want = c_fragment(mma_formula(a, b, c).to(c.dtype))
    got = run_mma(case, a, b, c)
    if c.dtype == torch.float64:  # rounded after each product
        assert torch.allclose(got.view(c.dtype), want.view(c.dtype), rtol=1e-15, atol=1e-15)
        return
    # f64 sums in another order may round to the neighbour, which is rare.
    assert (got != want).sum() <= 1
    assert torch.allclose(got.view(c.dtype), want.view(c.dtype), rtol=2 * torch.finfo(c.dtype).eps, atol=0)


@on_a_card
@pytest.mark.parametrize("case", MMA_CASES, ids=lambda c: c.kernel)
def test_mma_conforms(case):
    a, b, c = mma_inputs(case, whole_numbers=True)
    assert torch.equal(run_mma(case, a, b, c, "cuda"), run_mma(case, a, b, c))


# --- ldmatrix and stmatrix -------------------------------------------------------------------------------------------


def matrix_inputs(kernel: str):
    generator = torch.Generator().manual_seed(12)
    rows = torch.randperm(32, generator=generator).to(torch.int32)
    return torch.randint(-(2**31), 2**31, (128,), generator=generator).to(torch.int32), rows


def split_name(kernel: str) -> tuple[int, bool]:
    number, transposed = kernel.split("<")[1].rstrip(">").split(", ")
    return int(number), transposed == "true"


def run_matrix(kernel: str, given, rows, device="cpu") -> torch.Tensor:
    size = 32 * split_name(kernel)[0] if kernel.startswith("load") else 128
    out = torch.zeros(size, dtype=torch.int32, device=device)
    return run(kernel, out, given.to(device), rows.to(device)).cpu()


def matrix_formula(kernel: str, given, rows) -> torch.Tensor:
    """Lane l has elements 2 (l % 4) and the next of row l / 4; lane 8 j + i names row i of matrix j."""
    number, transposed = split_name(kernel)
    if kernel.startswith("load"):
        matrices = given.view(torch.int16).view(32, 8)[rows.long()].view(4, 8, 8)[:number]
        matrices = matrices.transpose(1, 2) if transposed else matrices
        return words(matrices)[:, LANES // 4, LANES % 4].flatten()
    pieces = torch.zeros(number, 8, 4, dtype=torch.int32)
    pieces[:, LANES // 4, LANES % 4] = given[: 32 * number].view(number, 32)
    halves = pieces.view(torch.int16)
    halves = halves.transpose(1, 2).contiguous() if transposed else halves
    memory = torch.zeros(32, 8, dtype=torch.int16)
    memory[rows.long()[: 8 * number]] = halves.reshape(-1, 8)
    return memory.view(torch.int32).flatten()


@pytest.mark.parametrize("kernel", MATRIX_KERNELS)
def test_matrices_move_by_the_formula(kernel):
    inputs = matrix_inputs(kernel)
    assert torch.equal(run_matrix(kernel, *inputs), matrix_formula(kernel, *inputs))


@on_a_card
@pytest.mark.parametrize("kernel", MATRIX_KERNELS)
def test_matrices_conform(kernel):
    given, rows = matrix_inputs(kernel)
    assert torch.equal(run_matrix(kernel, given, rows, "cuda"), run_matrix(kernel, given, rows))


def by_generic_address(device: str) -> torch.Tensor:
    given = torch.arange(64, dtype=torch.int16, device=device).view(torch.int32)
    return run("matrices_by_generic_address", torch.zeros(32, dtype=torch.int32, device=device), given).cpu()


def test_generic_addresses_transpose_in_place():
    want = torch.arange(64, dtype=torch.int16).view(8, 8).T.contiguous()
    assert torch.equal(by_generic_address("cpu"), words(want).flatten())


@on_a_card
def test_generic_addresses_conform():
    assert torch.equal(by_generic_address("cuda"), by_generic_address("cpu"))


# --- reports and counts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ERRORS)
def test_misuse_is_found_with_its_line(kernel):
    given = torch.ones(64, dtype=torch.int32)
    with pytest.raises(SimulationError, match=r"(tensor\.cu|matrix\.cuh):\d+") as caught:
        run(kernel, torch.zeros(32, dtype=torch.int32), given)
    assert caught.value.reports[0].kind == ERRORS[kernel]


@pytest.mark.parametrize(("kernel", "wavefronts"), list(zip(BANKS, (32, 4), strict=True)))
def test_bank_conflicts_of_ldmatrix_are_counted(kernel, wavefronts):
    """Four matrices: four wavefronts, or one for each row where all rows of a matrix lie in the same banks."""
    with count() as counts:
        run(kernel, torch.zeros(32, dtype=torch.int32), torch.ones(32, dtype=torch.int32))
    loads = [t for line, t in counts[0].lines.items() if "matrix.cuh" in line and t.shared_requests]
    assert [(t.shared_requests, t.shared_wavefronts, t.ideal_shared_wavefronts) for t in loads] == [(1, wavefronts, 4)]


def test_every_line_of_the_tensor_table_has_a_test():
    tested = set()
    for source, names in (("tensor.cu", NAMES), ("hopper.cu", HOPPER_NAMES)):
        for kernel in parse(compiled(HERE / source, names).code.decode()).kernels:
            tested |= {find_line(s)[0] for s in kernel.body.statements()}
    assert not [line.syntax for line in instructions_tensor.INSTRUCTIONS if line not in tested]
