"""Launch configurations: a table of good ones by GPU, from which `prepare` may pick the fastest by measuring.

    TILES = Tiles(
        half={80: [dict(BM=128, BN=128, BK=32, num_warps=4, num_stages=4)],
              90: [dict(BM=128, BN=256, BK=64, num_warps=8, num_stages=4), dict(BM=128, BN=128, …)]},
        fp32={80: [dict(BM=64, BN=64, BK=32, num_warps=4, num_stages=3)]},
    )

    def prepare(shape, phase):
        tune("matmul", shape, phase, globals()[phase], TILES)

    kernel[grid](…, **TILES.at(x.dtype, M, N, K))

The first entry of an architecture is its default, so nothing needs tuning to run; an architecture without entries uses
those of the next older one. What was measured is kept in a file, by GPU, Triton's version, source and shape.
"""

import functools
import hashlib
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kernels import cache_dir, put
from kernels.triton import capability

Config = dict[str, Any]  # constexprs of a kernel, num_warps, num_stages
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Tiles:
    """The configurations of one kernel: for 16-bit elements, and for fp32."""

    def __init__(self, half: dict[int, list[Config]], fp32: dict[int, list[Config]]):
        self.half, self.fp32 = half, fp32
        self.tuned: dict[str, Config] = {}  # by key
        self.used: dict[str, Config] = {}  # by key, of the launches so far: what a row of results shows
        self.trying: Config | None = None

    def at(self, dtype: torch.dtype, *sizes: int | bool) -> Config:
        """The configuration for a launch, told apart by dtype and sizes."""
        key = _key(dtype, sizes)
        config = self.trying or self.tuned.get(key) or self.candidates(dtype)[0]
        self.used[key] = config
        return config

    def text(self, name: str) -> str:
        """`TILES BM=128 num_warps=4 (default)` for each configuration in use; `(tuned)` where it was measured."""
        found: dict[str, None] = {}
        for key, config in self.used.items():
            origin = "tuned" if self.tuned.get(key) == config else "default"
            found[f"{text_of(name, config)} ({origin})"] = None
        return "; ".join(found)

    def listed(self, name: str) -> dict[str, Config]:
        """All configurations, of any architecture, by `text_of`."""
        lists = [*self.half.values(), *self.fp32.values()]
        return {text_of(name, config): config for configs in lists for config in configs}

    def candidates(self, dtype: torch.dtype) -> list[Config]:
        """Of the current GPU; the first is the default."""
        table = self.fp32 if dtype == torch.float32 else self.half
        known = [arch for arch in table if arch <= capability()]
        return table[max(known, default=min(table))]


@functools.cache
def _key(dtype: torch.dtype, sizes: tuple[int | bool, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {' '.join(str(int(s)) for s in sizes)}".strip()


def text_of(name: str, config: Config) -> str:
    """`TILES BM=128 num_warps=4`: a configuration of the table of this name."""
    return " ".join([name, *(f"{k}={v}" for k, v in config.items())])


def tables_of(module: Any) -> dict[str, Tiles]:
    """The tables that a variant's module defines, by name."""
    return {name: value for name, value in vars(module).items() if isinstance(value, Tiles)}


def tune(layer: str, shape: dict[str, Any], phase: str, function: Callable[..., None], *tables: Tiles) -> None:
    """On a GPU, pick each table's fastest configuration for a call, one table after the other; the best so far stays
    in the others. Elsewhere the defaults stand. `function` is the variant's forward or backward."""
    from triton.runtime import driver

    if driver.active.get_active_torch_device().type != "cuda":
        return
    from triton.testing import do_bench

    device = torch.device("cuda", driver.active.get_current_device())
    name = torch.cuda.get_device_name(device)
    measure_and_keep(layer, shape, phase, function, tables, name, str(device), do_bench)


def measure_and_keep(
    layer: str,
    shape: dict[str, Any],
    phase: str,
    function: Callable[..., None],
    tables: tuple[Tiles, ...],
    gpu: str,
    device: str,
    milliseconds: Callable[[Callable[[], None]], float],
) -> None:
    """`tune` with the GPU's name, its tensors' device and the clock as arguments."""
    file = cache_dir() / "triton-tuned.json"
    case = _case(function, shape, phase, gpu)
    known = _read(file).get(case)
    if known is not None and len(known) == len(tables):
        for table, tuned in zip(tables, known, strict=True):
            table.tuned |= tuned
        return
    args, kwargs = random_call(layer, shape, phase, device, sys.modules[function.__module__])
    found = [
        _fastest(table, TORCH_DTYPES[shape["dtype"]], lambda: function(*args, **kwargs), milliseconds)
        for table in tables
    ]
    everything = _read(file) | {case: found}
    put(file, json.dumps(everything, indent=1).encode())


def _case(function: Callable, shape: dict[str, Any], phase: str, gpu: str) -> str:
    import triton

    source = hashlib.sha256(Path(function.__code__.co_filename).read_bytes()).hexdigest()[:16]
    sizes = json.dumps({k: v for k, v in shape.items() if k != "accumulate"}, sort_keys=True, default=str)
    return f"{gpu} | triton {triton.__version__} | {source} | {phase} | {sizes}"


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _fastest(
    table: Tiles, dtype: torch.dtype, call: Callable[[], None], milliseconds: Callable[[Callable[[], None]], float]
) -> dict[str, Config]:
    """Measure every candidate, and set the fastest for all keys that the call asks the table for."""
    from triton.runtime.errors import OutOfResources

    times: list[tuple[float, Config]] = []
    keys: set[str] = set()
    for config in table.candidates(dtype):
        table.used, before, table.trying = {}, table.used, config
        try:
            times.append((milliseconds(call), config))
            keys |= set(table.used)
        except OutOfResources:  # does not fit this GPU: no candidate
            pass
        finally:
            table.used, table.trying = before, None
    best = min(times, key=lambda entry: entry[0])[1] if times else None
    tuned = dict.fromkeys(keys, best) if best else {}
    table.tuned |= tuned
    return tuned


def random_call(
    layer: str, shape: dict[str, Any], phase: str, device: str, module: Any
) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of a call, its tensors drawn at random: (positional, keyword)."""
    from reference import contract

    spec = contract.pass_of(contract.load(layer), phase)

    def draw(t: contract.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
        if t.dtype == "int":
            return torch.randint(shape[t.high], sizes, device=device)
        return torch.randn(sizes, device=device).to(TORCH_DTYPES[t.dtype_in(shape)])

    def value(t: contract.Tensor) -> Any:
        if not t.when(shape):
            return None
        drawn = [draw(t, sizes) for sizes in t.many_sizes(shape)]
        return drawn if t.many else drawn[0]

    positional = [value(t) for t in spec.inputs] + [shape[name] for name in spec.scalars]
    if spec.accumulates:
        positional.append(False)
    keyword = {t.name: value(t) for t in spec.outputs}
    if "workspace" in inspect.signature(getattr(module, phase)).parameters:
        keyword["workspace"] = torch.empty(module.workspace(shape, phase), dtype=torch.uint8, device=device)
    return positional, keyword
