"""Blocks that stay take row after row: no ragged shape has as many rows as that takes, so that blocks are made few."""

import pytest

from bench.core import variants
from bench.core.arena import Arena, workspace_of
from bench.core.case import Case
from bench.simulate import SimulationError
from bench.trial import checks, truth

VARIANTS = variants.discover()
ROWS = dict(B=9, T=9, eps=1e-5)  # on a multiprocessor that has room for 32 at once
FUSED = dict(B=7, T=3, VP=512, dtype="bf16")
SHAPES = {
    "residual_layernorm": [
        dict(ROWS, C=40, dtype="bf16"),  # a warp a row, 16 bytes an access
        dict(ROWS, C=37, dtype="bf16"),  # 2 bytes
        dict(ROWS, T=1, C=4096, dtype="fp32"),  # a block a row
    ],
    "residual_rmsnorm": [dict(ROWS, C=40, dtype="bf16"), dict(ROWS, T=1, C=4096, dtype="fp32")],
    "fused_classifier": [
        dict(FUSED, V=500),
        dict(FUSED, V=509, VP=509),  # no asynchronous copy is as narrow
        dict(FUSED, V=30_000, VP=30_016, dtype="fp32", B=1),  # one block to a multiprocessor
    ],
}
MUTANTS = {  # each is found at the first shape
    "residual_layernorm": [("        ask(r + step);\n", ""), ("ask(r + step)", "ask(r + ROWS)")],
    "residual_rmsnorm": [("        ask(r + step);\n", ""), ("ask(r + step)", "ask(r + ROWS)")],
    "fused_classifier": [
        ("if (next) copy_pack<N>(kept + i, next + i);", ""),
        ("x + gridDim.x * (long long)VP : nullptr", "x + VP : nullptr"),
        ("        wait_copies<0>();\n", ""),
        ("row + gridDim.x < rows ?", "true ?"),
    ],
}


def verdict(module, layer: str, shape: dict) -> str:
    """The project's own: "ok", the name of the check that failed, or the kind of the simulator's first report."""
    case = Case(layer, "forward", shape, "test")
    brief = truth.brief(case, variants.find(VARIANTS, layer, "torch.eager"))
    arena = Arena(case, "cpu", workspace_of(module, case))
    arena.load(brief.values)
    arena.reset()
    try:
        arena.call(module.forward)
    except SimulationError as error:
        return error.reports[0].kind
    return checks.inspect(arena, brief).check


@pytest.mark.parametrize(("layer", "shape"), [(layer, shape) for layer, some in SHAPES.items() for shape in some])
def test_rows_after_rows(layer, shape, monkeypatch, simulated):
    module = simulated(layer, "cuda.vector")
    monkeypatch.setattr(module, "SMS", 1)
    assert verdict(module, layer, shape) == "ok"


def edits():
    """All but each layer's first are slow."""
    for layer, some in MUTANTS.items():
        for n, edit in enumerate(some):
            yield pytest.param(layer, edit, id=f"{layer}-{n}", marks=[pytest.mark.slow] if n else [])


@pytest.mark.parametrize(("layer", "edit"), list(edits()))
def test_another_row_is_found(layer, edit, monkeypatch, simulated, tmp_path):
    module, (old, new) = simulated(layer, "cuda.vector"), edit
    source = module.forward_kernel.source.read_text()
    assert source.count(old) == 1
    (tmp_path / "vector.cu").write_text(source.replace(old, new))
    monkeypatch.setattr(module, "SMS", 1)
    monkeypatch.setattr(module.forward_kernel, "source", tmp_path / "vector.cu")
    assert verdict(module, layer, SHAPES[layer][0]) != "ok"
