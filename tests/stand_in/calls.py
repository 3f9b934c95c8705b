"""python -m tests.stand_in.calls [LAYER/BACKEND.STEM/PASS …]: a call of GPU variants over the stand-in driver.

Each at the first shape of its layer in gpt2-124m, B=4, T=1024, bf16; a line of JSON each: the launches as the driver
was asked for them, and the host's time a launch. Memory is reserved, and neither filled nor read.
"""

import json
import sys
import time
from collections.abc import Iterator

from tests import stand_in

MODEL, B, T = "gpt2-124m", 4, 1024
CALLS, TURNS = 50, 5


def everything() -> list[str]:
    from bench.core.variants import discover

    return [f"{v.layer}/{v.name}/{p}" for v in discover() if v.gpu_code for p in ("forward", "backward") if v.has(p)]


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


def made(driver: stand_in.StandIn, name: str, dtype: str = "bf16") -> dict:
    from bench.core.arena import Arena, workspace_of
    from bench.core.variants import discover, find

    layer, variant, phase = name.split("/")
    module = find(discover(), layer, variant).load()
    case = case_of(layer, phase, dtype)
    arena = Arena(case, "cpu", workspace_of(module, case))
    args, kwargs = arena.args(), arena.kwargs()
    function = getattr(module, phase)
    function(*args, **kwargs)  # compiles
    driver.forget()
    driver.capture(stand_in.STREAM)
    function(*args, **kwargs)
    launched, counts = driver.launched(), driver.counts()
    driver.capture(None)
    driver.record(False)
    seconds = host_seconds(lambda: function(*args, **kwargs))
    driver.record(True)
    addresses = {
        n: [t.data_ptr() for t in (v if isinstance(v, list) else [v])]
        for n, v in {**arena.inputs, **kwargs}.items()
        if v is not None
    }
    return dict(
        name=name,
        launches=[dict(vars(each), parameters=[p.hex() for p in each.parameters]) for each in launched],
        counts=counts,
        host_us=seconds * 1e6,
        launch_us=seconds * 1e6 / max(1, len(launched)),
        addresses=addresses,
    )


def lines(names: list[str]) -> Iterator[dict]:
    driver = stand_in.use()
    for name in names:
        try:
            yield made(driver, name)
        except Exception as error:
            yield dict(name=name, error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    for line in lines(sys.argv[1:] or everything()):
        print(json.dumps(line), flush=True)
