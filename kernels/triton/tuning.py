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
those of the next older one. What was measured is kept in a file, by GPU, Triton's version, source and shape. Only one
process measures on a GPU at a time, and only where times are wanted: a proof takes the defaults (`untuned`).
"""

import contextlib
import fcntl
import functools
import hashlib
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterator
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
        self.refused: dict[str, str] = {}  # what does not compile, or fit this GPU, by its text: the error's type

    def at(self, dtype: torch.dtype, *sizes: int | bool) -> Config:
        """The configuration for a launch, told apart by dtype and sizes."""
        key = _key(dtype, sizes)
        config = self.trying or self.tuned.get(key) or self._default(dtype)
        self.used[key] = config
        return config

    def _default(self, dtype: torch.dtype) -> Config:
        configs = self.candidates(dtype)
        if not self.refused:
            return configs[0]
        return next((c for c in configs if text_of("", c) not in self.refused), configs[0])

    def text(self, name: str) -> str:
        """`TILES BM=128 num_warps=4 (default)` for each configuration in use; `(tuned)` where it was measured, with
        those that were left out."""
        without = ", ".join(f"{config.strip()}: {error}" for config, error in self.refused.items())
        found: dict[str, None] = {}
        for key, config in self.used.items():
            origin = "tuned" if self.tuned.get(key) == config else "default"
            found[f"{text_of(name, config)} ({origin}{f', without {without}' if without else ''})"] = None
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

    if _untuned or driver.active.get_active_torch_device().type != "cuda":
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
    if _take_known(file, case, tables):
        return
    with _alone_on(device) as alone:
        # Another process may have measured meanwhile; where one does so for too long, the defaults stand.
        if _take_known(file, case, tables) or not alone:
            return
        args, kwargs = random_call(layer, shape, phase, device, sys.modules[function.__module__])

        def call() -> None:
            function(*args, **kwargs)

        dtype = TORCH_DTYPES[shape["dtype"]]
        asked = _asked(tables, call)
        found = [_fastest(table, dtype, call, milliseconds) if table in asked else {} for table in tables]
        told: dict[str, Any] = {case: found}
        if any(table.refused for table in tables):
            told[f"{case}{REFUSED}"] = [table.refused for table in tables]
        put(file, json.dumps(_read(file) | told, indent=1).encode())


def _take_known(file: Path, case: str, tables: tuple[Tiles, ...]) -> bool:
    """Whether the case was measured before; its configurations are then set."""
    everything = _read(file)
    known = everything.get(case)
    if known is None or len(known) != len(tables):
        return False
    for table, tuned in zip(tables, known, strict=True):
        table.tuned |= tuned
    for table, refused in zip(tables, everything.get(f"{case}{REFUSED}", []), strict=False):
        table.refused |= refused
    return True


REFUSED = " | refused"  # ends the key of what was left out

_untuned = False


@contextlib.contextmanager
def untuned() -> Iterator[None]:
    """Nothing is measured inside: a proof's small shapes need no tuning, and under a sanitizer no time is one."""
    global _untuned
    before, _untuned = _untuned, True
    try:
        yield
    finally:
        _untuned = before


PATIENCE_SECONDS = 120.0  # with another process that measures on the same GPU


@contextlib.contextmanager
def _alone_on(device: str) -> Iterator[bool]:
    """Whether this process alone may measure on a device now; it waits for others, but not for ever."""
    file = cache_dir() / f"tuning-{device.replace(':', '-')}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    yield False
                    return
                time.sleep(0.05)
        yield True  # closing the file gives the lock back


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


def _asked(tables: tuple[Tiles, ...], call: Callable[[], None]) -> list[Tiles]:
    """The tables that a call asks: those of another way to compute it are not worth a measurement. All of them where
    the defaults are refused."""
    before = [table.used for table in tables]
    for table in tables:
        table.used = {}
    try:
        call()
        return [table for table in tables if table.used]
    except Exception as error:
        if not is_refusal(error):
            raise
        return list(tables)
    finally:
        for table, used in zip(tables, before, strict=True):
            table.used = used


def is_refusal(error: Exception) -> bool:
    """Whether a configuration did not compile, or does not fit the GPU: nothing ran. Triton's own errors, and what its
    passes end with."""
    from triton.errors import TritonError

    return isinstance(error, TritonError) or "PassManager::run failed" in str(error)


def _fastest(
    table: Tiles, dtype: torch.dtype, call: Callable[[], None], milliseconds: Callable[[Callable[[], None]], float]
) -> dict[str, Config]:
    """Measure every candidate, and set the fastest for all keys that the call asks the table for. What is refused is
    left out; raises the last refusal where nothing is left."""
    refusal: Exception | None = None
    times: list[tuple[float, Config]] = []
    keys: set[str] = set()
    for config in table.candidates(dtype):
        table.used, before, table.trying = {}, table.used, config
        try:
            times.append((milliseconds(call), config))
            keys |= set(table.used)
        except Exception as error:
            if not is_refusal(error):
                raise
            refusal = error
            table.refused[text_of("", config)] = type(error).__name__
        finally:
            table.used, table.trying = before, None
    if refusal and not times:
        raise refusal
    tuned = dict.fromkeys(keys, min(times, key=lambda entry: entry[0])[1])
    table.tuned |= tuned
    return tuned


def random_call(
    layer: str, shape: dict[str, Any], phase: str, device: str, module: Any
) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of a call, its tensors drawn at random and made meaningful: (positional, keyword). With lengths beyond
    its cache a kernel would write where others live."""
    from reference import contract

    reference = contract.load(layer)
    spec = contract.pass_of(reference, phase)

    def draw(t: contract.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
        if t.dtype == "int":
            return (
                torch.randint(shape[t.high], sizes, device=device)
                if t.high
                else torch.zeros(sizes, dtype=torch.int64, device=device)
            )
        if t.dtype == "int8":
            return torch.randint(-127, 128, sizes, device=device, dtype=torch.int8)
        return torch.randn(sizes, device=device).to(TORCH_DTYPES[t.dtype_in(shape)])

    def value(t: contract.Tensor) -> Any:
        if not t.when(shape):
            return None
        drawn = [draw(t, sizes) for sizes in t.many_sizes(shape)]
        return drawn if t.many else drawn[0]

    values = {t.name: value(t) for t in (*reference.FORWARD.tensors(), *spec.tensors())}
    if hasattr(reference, "consistent"):
        with torch.device(device):
            reference.consistent(values, shape)
    positional = [values[t.name] for t in spec.inputs] + spec.scalars_in(shape)
    if spec.accumulates:
        positional.append(False)
    keyword = {t.name: values[t.name] for t in spec.outputs}
    if "workspace" in inspect.signature(getattr(module, phase)).parameters:
        keyword["workspace"] = torch.empty(module.workspace(shape, phase), dtype=torch.uint8, device=device)
    return positional, keyword
