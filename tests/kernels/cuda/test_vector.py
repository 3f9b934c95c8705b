"""Blocks that stay take row after row: no ragged shape has as many rows as that takes, so that blocks are made few."""

import itertools
from pathlib import Path

import pytest

from bench.core import variants
from bench.core.arena import Arena, workspace_of
from bench.core.case import Case
from bench.simulate import SimulationError, launcher
from bench.trial import checks, truth

VARIANTS = variants.discover()
ROWS = dict(B=9, T=9, eps=1e-5)  # on a multiprocessor that has room for 32 at once
FUSED = dict(B=7, T=3, VP=512, dtype="bf16")
LOGITS = dict(B=7, T=5, dtype="bf16")  # rows, where 6 blocks share a multiprocessor
LONG_ROWS = dict(R=9, dtype="bf16")
SHAPES = {
    ("layernorm", "forward"): [
        dict(ROWS, C=264, dtype="bf16"),  # a warp a row, two of 16 bytes an access
        dict(ROWS, C=38, dtype="bf16"),  # 4 bytes
        dict(ROWS, T=1, C=4096, dtype="fp32"),  # a block a row
    ],
    ("rmsnorm", "forward"): [dict(ROWS, C=264, dtype="bf16"), dict(ROWS, T=1, C=4096, dtype="fp32")],
    ("residual_layernorm", "forward"): [
        dict(ROWS, C=40, dtype="bf16"),  # a warp a row, 16 bytes an access
        dict(ROWS, C=37, dtype="bf16"),  # 2 bytes
        dict(ROWS, T=1, C=4096, dtype="fp32"),  # a block a row
    ],
    ("residual_rmsnorm", "forward"): [dict(ROWS, C=40, dtype="bf16"), dict(ROWS, T=1, C=4096, dtype="fp32")],
    ("fused_classifier", "forward"): [
        dict(FUSED, V=500),
        dict(FUSED, V=509, VP=509),  # no asynchronous copy is as narrow
        dict(FUSED, V=30_000, VP=30_016, dtype="fp32", B=1),  # one block to a multiprocessor
    ],
    ("cross_entropy", "forward"): [
        dict(LOGITS, V=9007, VP=9007),  # each row begins elsewhere in 16 bytes, and has three batches
        dict(LOGITS, V=500, VP=512),  # one
        dict(LOGITS, V=4101, VP=4103, dtype="fp32"),
    ],
    ("cross_entropy", "backward"): [
        dict(LOGITS, V=8500, VP=9007),  # of three batches the last one's second half is padding
        dict(LOGITS, V=500, VP=9000),  # two batches of padding
        dict(LOGITS, V=2049, VP=2051, dtype="fp32"),
    ],
    ("softmax", "forward"): [
        dict(
            LONG_ROWS, S=9007, causal=True
        ),  # a row is three batches and no whole pack; r + 1 columns of it are visible
        dict(LONG_ROWS, S=16_383, causal=False),  # some rows have a pack more than the one before them
        dict(LONG_ROWS, S=30_001, dtype="fp32", causal=False),  # one block to a multiprocessor
    ],
    ("softmax", "backward"): [
        dict(LONG_ROWS, S=9007, causal=True),
        dict(LONG_ROWS, S=16_383, causal=False),
        dict(LONG_ROWS, S=8195, dtype="fp32", causal=False),
    ],
}
ROWS_AHEAD = [
    ("        ask(r + AHEAD * step);\n", ""),
    ("ask(r + AHEAD * step)", "ask(r + step)"),
    ("ask(first + a * step)", "ask(first + a * ROWS)"),
    ("wait_copies<AHEAD - 1>();", "wait_copies<AHEAD>();"),
    ("stage + 1 == AHEAD ? 0 : stage + 1", "0"),
    ("        if (r < rows)\n", ""),
    ("copies + stage * STAGE + p * BLOCK, tensor", "copies + stage * STAGE, tensor"),
    ("gridDim.x * (long long)ROWS;", "gridDim.x * (long long)ROWS + 1;"),
]
STREAM = [
    ("        ask();\n", ""),
    ("wait_copies<STAGES - 1>();", "wait_copies<STAGES>();"),
    ("start = 0, row += gridDim.x;", "start = 0, row += 1;"),
    ("start >= at.packs(columns)", "start > at.packs(columns) + BATCH"),
    ("stage + 1 == STAGES ? 0 : stage + 1", "0"),
    ("if (i < packs) at.copy(copies", "at.copy(copies"),
    ("stage * BATCH + p * THREADS, logits", "stage * BATCH, logits"),
    ("        if (row < rows) {\n            const Aligned", "        {\n            const Aligned"),
]
ALIGNED_ROW = [
    ("origin(begin / N * N)", "origin(begin)"),
    ("before(begin % N)", "before(0)"),
    ("(before + columns + N - 1) / N", "(columns + N - 1) / N"),
]
MASK = [
    ("if (first + k < 0 || first + k >= columns) values", "if (first + k >= columns) values"),
    ("if (first + k < 0 || first + k >= columns) values", "if (first + k < 0) values"),
    ("column(pack) >= 0 && column(pack) + N", "column(pack) + N"),
    ("column(pack) + N <= columns;", "column(pack) <= columns;"),
]
STORE = [
    ("if (first + k >= 0 && first + k < columns) to", "if (first + k < columns) to"),
    ("if (first + k >= 0 && first + k < columns) to", "if (first + k >= 0) to"),
    ("column(pack) >= 0 && column(pack) + N", "column(pack) + N"),
    ("column(pack) + N <= columns;", "column(pack) <= columns;"),
]
LONG_ROW = [
    ("{ wait_copies<0>(); }", "{}"),
    ("later = r + gridDim.x;", "later = r + 1;"),
    ("later < R ? next", "true ? next"),
    ("max(packs, next_seen)", "seen"),
    ("max(packs, next_seen)", "packs"),
    ("if (i < next_seen) ask(next, i);", ""),
    ("ask(next, i)", "ask(row, i)"),
    ("if (i < next_seen)", "if (i < seen)"),
    ("int(r % S) + 1", "int(r % S)"),
    ("if (i >= packs) break;", "if (i >= seen) break;"),
    ("                row.mask(values[t], i, columns, outside);\n", ""),
    ("tensors[t], i, R * S)", "tensors[0], i, R * S - S)"),
    *ALIGNED_ROW,
    *STORE,
]
HEADERS = ("rows_ahead", "aligned_row")  # of vector kernels alone: edited as if they were part of them
NEXT_TARGET = "next_target = targets[row + gridDim.x]"
MUTANTS = {  # each is found at one of the shapes, nearly all at the first
    ("layernorm", "forward"): [*ROWS_AHEAD, ("mean + r, rstd + r", "mean + first, rstd + r")],
    ("rmsnorm", "forward"): [*ROWS_AHEAD, ("x, rows, step,", "x, rows - ROWS, step,")],
    ("residual_layernorm", "forward"): [("        ask(r + step);\n", ""), ("ask(r + step)", "ask(r + ROWS)")],
    ("residual_rmsnorm", "forward"): [("        ask(r + step);\n", ""), ("ask(r + step)", "ask(r + ROWS)")],
    ("fused_classifier", "forward"): [
        ("if (next) copy_pack<N>(kept + i, next + i);", ""),
        ("x + gridDim.x * (long long)VP : nullptr", "x + VP : nullptr"),
        ("        wait_copies<0>();\n", ""),
        ("row + gridDim.x < rows ?", "true ?"),
    ],
    ("cross_entropy", "forward"): [
        *STREAM,
        *ALIGNED_ROW,
        *MASK,
        ("left < N ? int(left) * int(sizeof(T)) : PACK_BYTES", "PACK_BYTES"),
        (NEXT_TARGET, "next_target = targets[row + 1]"),
        ("if (row + gridDim.x < rows) " + NEXT_TARGET, NEXT_TARGET),
        ("if (column + k == target) target_logit", "if (k == target % N) target_logit"),
        ("values[p] = filled<N>(LOWEST);", "values[p] = filled<N>(0);"),
        ("largest - target_logit : 0;", "running.largest - target_logit : 0;"),
        ("running.sum * exp_approx(running.largest - largest)", "running.sum"),
    ],
    ("cross_entropy", "backward"): [
        *STREAM,
        *ALIGNED_ROW,
        *STORE,
        ("next_target = targets[next]", "next_target = targets[row]"),
        ("next_lse = lse[next];", "next_lse = lse[row];"),
        ("values[k] = column + k < V ?", "values[k] = column + k < VP ?"),
        ("values[k] -= dloss;", "values[k] -= 1;"),
        ("at.packs(V), all = at.packs(VP)", "at.packs(V), all = at.packs(V)"),
    ],
    ("softmax", "forward"): [
        *LONG_ROW,
        ("                    row.mask(y, i, columns, 0);\n", ""),
        ("values[0][k] - largest", "values[0][k] - mine.largest"),
        ("mine.sum * exp_approx(mine.largest - largest)", "mine.sum"),
    ],
    ("softmax", "backward"): [
        *LONG_ROW,
        ("batch[p][t] = kept[t * room + i]", "batch[p][t] = kept[t * room]"),
        ("copy(kept + t * room + i", "copy(kept + i"),
        ("values[1][k] * (values[0][k] - dot)", "values[1][k] * values[0][k]"),
    ],
}


def whole(path: Path) -> str:
    """A kernel's source, with the text of HEADERS where they are included."""
    source = path.read_text()
    for name in HEADERS:
        header = (path.parents[1] / "common" / f"{name}.cuh").read_text().replace("#pragma once\n", "")
        source = source.replace(f'#include "common/{name}.cuh"\n', header)
    return source


def verdict(module, layer: str, phase: str, shape: dict) -> str:
    """The project's own: "ok", the name of the check that failed, or the kind of the simulator's first report."""
    case = Case(layer, phase, shape, "test")
    brief = truth.brief(case, variants.find(VARIANTS, layer, "torch.eager"))
    arena = Arena(case, "cpu", workspace_of(module, case))
    arena.load(brief.values)
    arena.reset()
    try:
        arena.call(getattr(module, phase))
    except SimulationError as error:
        return error.reports[0].kind
    return checks.inspect(arena, brief).check


@pytest.mark.parametrize(("layer", "phase", "shape"), [(*of, shape) for of, some in SHAPES.items() for shape in some])
def test_rows_after_rows(layer, phase, shape, monkeypatch, simulated):
    module = simulated(layer, "cuda.vector")
    monkeypatch.setattr(module, "SMS", 1)
    assert verdict(module, layer, phase, shape) == "ok"


def edits():
    """All but each layer's first are slow."""
    for (layer, phase), some in MUTANTS.items():
        for n, edit in enumerate(some):
            marks = [pytest.mark.slow] if n else []
            yield pytest.param(layer, phase, edit, id=f"{layer}-{phase}-{n}", marks=marks)


@pytest.mark.parametrize(("layer", "phase", "edit"), list(edits()))
def test_another_row_is_found(layer, phase, edit, monkeypatch, simulated, tmp_path):
    module, (old, new) = simulated(layer, "cuda.vector"), edit
    kernel = getattr(module, f"{phase}_kernel")
    source = whole(kernel.source)
    assert source.count(old) == 1
    (tmp_path / "vector.cu").write_text(source.replace(old, new))
    monkeypatch.setattr(launcher, "_seeds", itertools.count())  # in the first order copies land as late as they may
    monkeypatch.setattr(module, "SMS", 1)
    monkeypatch.setattr(kernel, "source", tmp_path / "vector.cu")
    assert any(verdict(module, layer, phase, shape) != "ok" for shape in SHAPES[layer, phase])
