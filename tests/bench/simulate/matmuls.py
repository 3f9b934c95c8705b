"""Run the two matmul test kernels, whole or broken by an edit of their source, and judge the result."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.simulate import SimulationError
from tests.bench.simulate.devices import HERE, Map, launch

Shape = tuple[int, int, int]
ROWS, COLUMNS, MMA_DEPTH, WGMMA_DEPTH, STAGES = 128, 128, 32, 64, 3
MMA_SHARED = STAGES * (ROWS + COLUMNS) * MMA_DEPTH * 2
WGMMA_SHARED = (2 * STAGES * ROWS * WGMMA_DEPTH + ROWS * COLUMNS) * 2 + 2 * STAGES * 8


@dataclass(frozen=True)
class Matmul:
    """A kernel: `arguments(out, a, b)` is what it takes, `shapes` (M, N, K) are aligned and ragged."""

    name: str
    block: int
    shared: int
    arguments: Callable
    shapes: tuple[Shape, ...]  # tried by each mutant, the cheapest first

    @property
    def source(self) -> Path:
        return HERE / f"{self.name}.cu"


def _mma_arguments(out, a, b) -> list:
    return [out, a, b, out.shape[0], out.shape[1], a.shape[1]]


def _wgmma_arguments(out, a, b) -> list:
    tile, result = (ROWS, WGMMA_DEPTH), (ROWS // 2, COLUMNS)
    return [Map(a, tile, 128), Map(b, tile, 128), Map(out, result, const=False), a.shape[1]]


def _cluster_arguments(out, a, b) -> list:
    half = COLUMNS // 2
    return [
        Map(a, (ROWS, WGMMA_DEPTH), 128),
        Map(b, (half, WGMMA_DEPTH), 128),
        Map(out, (ROWS // 2, COLUMNS), const=False),
        a.shape[1],
    ]


MMA = Matmul("matmul_mma", 256, MMA_SHARED, _mma_arguments, ((100, 136, 104), (128, 128, 160)))
WGMMA = Matmul("matmul_wgmma", 384, WGMMA_SHARED, _wgmma_arguments, ((100, 136, 72), (128, 128, 512)))
CLUSTER = Matmul("matmul_cluster", 384, WGMMA_SHARED, _cluster_arguments, ((200, 72, 328), (256, 128, 512)))


def inputs(shape: Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """a, b and what a b^T is, before rounding."""
    m, n, k = shape
    generator = torch.Generator().manual_seed(m + n + k)
    a, b = (torch.randn(rows, k, generator=generator).bfloat16() for rows in (m, n))
    return a, b, a.double() @ b.double().T


def multiply(matmul: Matmul, shape: Shape, seed: int, source: Path | None = None, shared: int = 0) -> torch.Tensor:
    m, n, _ = shape
    a, b, _ = inputs(shape)
    out = torch.full((m, n), float("nan"), dtype=torch.bfloat16)
    grid = (-(-n // COLUMNS), -(-m // ROWS), 1)
    launch(
        source or matmul.source,
        (matmul.name,),
        matmul.name,
        matmul.arguments(out, a, b),
        grid=grid,
        block=matmul.block,
        shared=shared or matmul.shared,
        seed=seed,
    )
    return out


def is_right(out: torch.Tensor, shape: Shape) -> bool:
    """Each element is what rounding the exact product once to bf16 gives, or its neighbour."""
    want = inputs(shape)[2]
    return bool(((out.double() - want).abs() <= 2.0**-8 * want.abs() + 1e-5).all())


def verdict(matmul: Matmul, seeds: tuple[int, ...], source: Path, shared: int = 0) -> str:
    """How a mutant is found: the kind of the first report, "wrong result", or "" where it is not."""
    for seed in seeds:
        for shape in matmul.shapes:
            try:
                if not is_right(multiply(matmul, shape, seed, source, shared), shape):
                    return "wrong result"
            except SimulationError as error:
                return error.reports[0].kind
    return ""
