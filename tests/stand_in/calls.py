"""python -m tests.stand_in.calls [LAYER/BACKEND.STEM/PASS …]: a call of GPU variants over the stand-in driver.

Each at the first shape of its layer in gpt2-124m, B=4, T=1024, bf16; a line of JSON each: the launches as the driver
was asked for them and as they should be, and the host's time a call. Memory is reserved, and neither filled nor read.
"""

import ctypes
import json
import sys
import time
from collections.abc import Iterator

from tests import stand_in

MODEL, B, T, DTYPE, ARCH = "gpt2-124m", 4, 1024, "bf16", "sm_90a"
CALLS, TURNS = 10, 40


def everything() -> list[str]:
    """All but what calls a library, which is no kernel of ours (tests/stand_in/cublaslt.py, cudnn.py)."""
    from bench.core.variants import LIBRARIES, discover

    ours = [v for v in discover() if v.gpu_code and not set(LIBRARIES) & set(v.requires)]
    return [f"{v.layer}/{v.name}/{p}" for v in ours for p in ("forward", "backward") if v.has(p)]


def case_of(layer: str, phase: str, dtype: str):
    from bench.core.case import Case
    from reference import contract
    from reference.models import MODELS

    module = contract.load(layer)
    shapes = MODELS[MODEL].shapes(layer, B, T)
    shape = next(iter(shapes.values())).shape if shapes else module.typical(B, T)
    return Case(layer, phase, contract.overwriting(module, phase, shape, dtype), MODEL, 0)


def host_seconds(call) -> float:
    """Of this thread, by its CPU clock, the best of a few turns: others use the machine too."""
    best = float("inf")
    for _ in range(TURNS):
        start = time.thread_time()
        for _ in range(CALLS):
            call()
        best = min(best, (time.thread_time() - start) / CALLS)
    return best


def made(driver: stand_in.StandIn, name: str, dtype: str) -> dict:
    """What two calls asked the driver for, on tensors at other addresses each, beside what was to be asked for: the
    launches as the simulator is handed them, whose arguments are encoded without a plan."""
    from bench.core.arena import Arena, workspace_of
    from bench.core.variants import discover, find

    layer, variant, phase = name.split("/")
    module = find(discover(), layer, variant).load()
    case = case_of(layer, phase, dtype)
    arenas = [Arena(case, "cpu", workspace_of(module, case)) for _ in range(2)]
    arenas[0].call(getattr(module, phase))  # compiles, and plans
    calls = []
    for arena, captured in zip(arenas, (True, False), strict=True):
        driver.capture(stand_in.STREAM if captured else None)
        driver.forget()
        arena.call(getattr(module, phase))
        asked = [dict(vars(each), parameters=[p.hex() for p in each.parameters]) for each in driver.launched()]
        should = wanted(driver, arena, module)
        for launch, other in zip(asked, should, strict=True):
            read_tables(launch["parameters"], other["tables"])
        calls.append(dict(asked=asked, counts=driver.counts(), wanted=should, captured=captured))
    driver.capture(None)
    return dict(name=name, calls=calls, host_s=host_of(driver, arenas[0], module))


def read_tables(parameters: list[str], tables: dict[int, str]) -> None:
    """In the place of a table's address what lies there, and should."""
    for i, words in tables.items():
        address = int.from_bytes(bytes.fromhex(parameters[i]), "little")
        parameters[i] = ctypes.string_at(address, len(words) // 2).hex()


def wanted(driver: stand_in.StandIn, arena, module) -> list[dict]:
    from bench.gpu.launches import launching_with

    found: list = []
    driver.device = -1
    with launching_with(found.append, ARCH):
        arena.call(getattr(module, arena.case.phase))
    driver.device = 0
    return [as_wanted(each) for each in found]


def as_wanted(launch) -> dict:
    tables = {i: t.words.hex() for i, a in enumerate(launch.arguments) for t in a.tensors if hasattr(t, "words")}
    return dict(
        name=launch.build.name,
        grid=launch.grid,
        block=launch.block,
        shared=launch.shared,
        parameters=[tables.get(i, a.value.hex()) for i, a in enumerate(launch.arguments)],
        tensors=[[t.data_ptr() for t in a.tensors] for a in launch.arguments],
        tables=tables,
    )


def host_of(driver: stand_in.StandIn, arena, module) -> float:
    """Seconds of the host that a call takes."""
    args, kwargs = arena.args(), arena.kwargs()
    function = getattr(module, arena.case.phase)
    driver.record(False)
    seconds = host_seconds(lambda: function(*args, **kwargs))
    driver.record(True)
    return seconds


def lines(names: list[str]) -> Iterator[dict]:
    driver = stand_in.use()
    for name in names:
        try:
            yield made(driver, name, DTYPE)
        except Exception as error:
            yield dict(name=name, error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    for line in lines(sys.argv[1:] or everything()):
        print(json.dumps(line), flush=True)
