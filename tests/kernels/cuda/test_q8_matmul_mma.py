"""q8_matmul by int8 tensor cores where no ragged shape leads: more stages than there is room for, groups of several
stages, accesses of each width. One edit breaks the kernel, and a report or a wrong result tells."""

import pytest

from reference.q8_matmul import sizes
from tests.kernels.cuda.test_vector import verdict

LONG = sizes(9, 66, 160 * 6 + 48, 160)  # 7 groups of up to 3 stages, the last of one; 16 bytes a copy
SHAPES = [
    LONG,
    sizes(65, 33, 68 * 5, 68),  # two tiles of rows; 4 bytes a copy
    sizes(10, 17, 9 * 9, 9),  # a byte at a time
]
MUTANTS = [
    ("        __syncthreads();  // this stage", "        // this stage"),
    ("wait_copies<STAGES - 2>", "wait_copies<STAGES - 1>"),
    ("if (step + STAGES - 1 < steps) load(step + STAGES - 1);", "if (step + STAGES < steps) load(step + STAGES);"),
    ("row0 + i * 16, k * 2)", "row0 + i * 16, k)"),
    ("b[j / 2][j % 2], b[j / 2][j % 2 + 2]", "b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]"),
    ("of_x[i][e / 2] * of_weight[j][e % 2]", "of_x[i][e % 2] * of_weight[j][e / 2]"),
    ("                    dots[i][j][e] = 0;\n", ""),
    ("if ((step + 1) % parts) continue;", "if (step % parts) continue;"),
    ("first + row < rows && k < stop", "first + row < rows"),
    ("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32"),
]


@pytest.mark.parametrize("shape", SHAPES, ids=("long", "words", "bytes"))
def test_stages_after_stages(shape, simulated):
    assert verdict(simulated("q8_matmul", "cuda.mma"), "q8_matmul", "forward", dict(shape, dtype="fp32")) == "ok"


@pytest.mark.parametrize(
    "edit", [pytest.param(m, id=str(i), marks=[pytest.mark.slow] if i % 4 else []) for i, m in enumerate(MUTANTS)]
)
def test_mutant_is_found(edit, monkeypatch, simulated, tmp_path):
    module, (old, new) = simulated("q8_matmul", "cuda.mma"), edit
    source = module.tiles_kernel.source.read_text()
    assert source.count(old) == 1
    (tmp_path / "mma.cu").write_text(source.replace(old, new))
    monkeypatch.setattr(module.tiles_kernel, "source", tmp_path / "mma.cu")
    assert verdict(module, "q8_matmul", "forward", dict(LONG, dtype="fp32")) != "ok"
