"""`bench.layer LAYER --only backend.name --watch`: prove and time a variant again after every save.

Small shapes come first, so that most mistakes are told within seconds; what is right is then timed at the first shape,
beside PyTorch's variants, and a save meanwhile begins anew. What can only be simulated here is proved and counted.
Nothing is kept: a run that counts is one without --watch. Ctrl-C ends it.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench import cli
from bench.cli import CannotGoOn
from bench.core.variants import Variant, discover, find, simulated
from bench.show.terminal import Screen
from bench.trial.plan import Plan
from bench.trial.session import Session
from reference import contract

LOOK_SECONDS = 0.3  # between two looks at the files
SECONDS = 3.0  # of timing a shape and pass
BASELINES = ("torch.eager", "torch.compile")
UNREADABLE = "error"  # where `look` says why no source could be read

Seen = dict[str, str]  # the state of a source by the variant's name


class Saved(Exception):
    """The source changed while it was timed: what is being measured is out of date."""


class Watching(Screen):
    """Raises Saved at the first progress after one of the variants' sources changed."""

    def __init__(self, variants: Sequence[Variant]):
        super().__init__()
        self.variants = variants
        self.before = _sources(variants)

    def progress(self, text: str) -> None:
        if _sources(self.variants) != self.before:
            raise Saved
        super().progress(text)


def watch(plan: Plan, wait: Callable[[Seen], object] | None = None) -> int:
    """Go on until Ctrl-C. `wait` takes what was seen of the files and answers once that has changed; None ends it."""
    if len(plan.layers) > 1:
        raise CannotGoOn("--watch is for one layer", cli.USAGE)
    if not plan.named:
        raise CannotGoOn("--watch wants to know which variant: --only backend.name", cli.USAGE)
    wait = wait or (lambda seen: wait_for_change(plan, seen))
    started = False
    while True:
        seen = look(plan)
        try:
            if gone := started and [name for name in plan.named if name not in seen and UNREADABLE not in seen]:
                raise CannotGoOn(f"the file of {', '.join(gone)} is gone")
            if once(plan) == cli.OK:
                race(plan)
        except Saved:
            print("\nsaved while it was timed: once more", flush=True)
            continue
        except CannotGoOn as error:  # the file cannot be read just now: it is being written
            if error.code == cli.USAGE and not started:
                raise
            print(f"error: {error}", flush=True)
        finally:
            started = True
        print(f"\nwaiting for a change of {', '.join(plan.named)} (Ctrl-C ends)", flush=True)
        if wait(seen) is None:
            return cli.OK


def once(plan: Plan) -> int:
    """The proof."""
    return _run(replace(plan, variants=_variants(plan), check_only=True))


def race(plan: Plan) -> None:
    """Times at the first shape, beside the baselines that there are; Saved where a source changes meanwhile."""
    variants = _variants(plan)
    watched = [find([*variants], plan.layers[0], name) for name in plan.named]
    if all(simulated(v, plan.device, plan.setting.simulate) for v in watched):
        return  # PyTorch's times alone would say nothing of them
    beside = [v.name for v in variants if v.name in BASELINES and v not in watched]
    named, shape_name = (*plan.named, *beside), plan.shape_name or _first_shape(plan)
    _run(replace(plan, variants=variants, named=named, shape_name=shape_name, check_only=False), watched)


def _run(plan: Plan, watched: Sequence[Variant] = ()) -> int:
    with tempfile.TemporaryDirectory(prefix="layerbench-watch-") as folder:
        effort = replace(plan.effort, seconds=min(plan.effort.seconds, SECONDS))
        return Session(replace(plan, out=Path(folder) / "run", effort=effort, argv=()), Watching(watched)).run()


def _sources(variants: Sequence[Variant]) -> list[str]:
    try:
        return [v.source_hash() for v in variants]
    except OSError:  # just now a file is gone
        return []


def _variants(plan: Plan) -> tuple[Variant, ...]:
    """Those of the layer as they are just now."""
    return tuple(discover(plan.folders, plan.layers))


def _first_shape(plan: Plan) -> str:
    return next(iter(plan.model.shapes(plan.layers[0], contract.DEFAULT_B, 64)))


def look(plan: Plan) -> Seen:
    """The state of the variants' sources; of one that cannot be read, that."""
    try:
        return {v.name: v.source_hash() for v in _variants(plan) if v.name in plan.named}
    except (CannotGoOn, OSError) as error:
        return {UNREADABLE: str(error)}


def wait_for_change(plan: Plan, seen: Seen) -> Seen:
    while (now := look(plan)) == seen:
        time.sleep(LOOK_SECONDS)
    return now
