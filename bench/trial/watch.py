"""`bench.layer LAYER --only backend.name --watch`: prove and time a variant again after every save.

Small shapes come first, so that most mistakes are told within seconds; what is right is then timed at the first shape,
beside PyTorch's variants, and a save meanwhile begins anew. What can only be simulated here is proved and counted.
Nothing is kept: a run that counts is one without --watch. Ctrl-C ends it.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import cli
from bench.cli import CannotGoOn
from bench.core.variants import Variant, discover, find, simulated
from bench.trial.session import Session
from reference import contract
from reference.models import MODELS

LOOK_SECONDS = 0.3  # between two looks at the files
SECONDS = 3.0  # of timing a shape and pass
BASELINES = ("torch.eager", "torch.compile")
UNREADABLE = "error"  # where `look` says why no source could be read


class Saved(Exception):
    """The source changed while it was timed: what is being measured is out of date."""


def watch(args: argparse.Namespace, layer: str, wait: Callable[[Any], Any] | None = None) -> int:
    """Go on until Ctrl-C. `wait` takes what was seen of the files and answers once that has changed."""
    if not args.only:
        raise CannotGoOn("--watch wants to know which variant: --only backend.name", cli.USAGE)
    names = args.only.split(",")
    wait = wait or (lambda seen: wait_for_change(args, layer, names, seen))
    started = False
    while True:
        seen = look(args, layer, names)
        try:
            if gone := started and [name for name in names if name not in seen and UNREADABLE not in seen]:
                raise CannotGoOn(f"the file of {', '.join(gone)} is gone")
            if once(args, layer) == cli.OK:
                race(args, layer)
        except Saved:
            print("\nsaved while it was timed: once more", flush=True)
            continue
        except CannotGoOn as error:  # the file cannot be read just now: it is being written
            if error.code == cli.USAGE and not started:
                raise
            print(f"error: {error}", flush=True)
        finally:
            started = True
        print(f"\nwaiting for a change of {', '.join(names)} (Ctrl-C ends)", flush=True)
        if wait(seen) is None:
            return cli.OK


def once(args: argparse.Namespace, layer: str) -> int:
    """The proof."""
    return _run(args, layer, check_only=True)


def race(args: argparse.Namespace, layer: str) -> None:
    """Times at the first shape, beside the baselines that there are; Saved where a source changes meanwhile."""
    here = {v.name: v for v in _variants(args) if v.layer == layer}
    watched = [find([*here.values()], layer, name) for name in args.only.split(",")]
    if all(simulated(v, args.device, args.simulate) for v in watched):
        return  # PyTorch's times alone would say nothing of them
    beside = [name for name in BASELINES if name in here and here[name] not in watched]
    names = ",".join([args.only, *beside])
    _run(args, layer, watched, check_only=False, only=names, shape=_first_shape(args, layer))


def _run(args: argparse.Namespace, layer: str, watched: Sequence[Variant] = (), **changes: Any) -> int:
    with tempfile.TemporaryDirectory(prefix="layerbench-watch-") as folder:
        changed = {**vars(args), "out": Path(folder) / "run", "seconds": min(args.seconds, SECONDS), **changes}
        session = Session(argparse.Namespace(**changed), [], [layer], _variants(args))
        tell, before = session.screen.progress, _sources(watched)

        def progress(text: str) -> None:
            if _sources(watched) != before:
                raise Saved
            tell(text)

        session.screen.progress = progress  # type: ignore[method-assign]
        return session.run()


def _sources(variants: Sequence[Variant]) -> list[str]:
    try:
        return [v.source_hash() for v in variants]
    except OSError:  # just now a file is gone
        return []


def _variants(args: argparse.Namespace) -> list[Variant]:
    return discover(tuple(Path(d) for d in args.kernels))


def _first_shape(args: argparse.Namespace, layer: str) -> str:
    model, slash, _ = args.shape.partition("/")
    first = next(iter(MODELS[model].shapes(layer, contract.DEFAULT_B, 64)))
    return args.shape if slash or not first else f"{model}/{first}"


def look(args: argparse.Namespace, layer: str, names: list[str]) -> dict[str, str]:
    """The state of the variants' sources; of one that cannot be read, that."""
    try:
        return {v.name: v.source_hash() for v in _variants(args) if v.layer == layer and v.name in names}
    except (CannotGoOn, OSError) as error:
        return {UNREADABLE: str(error)}


def wait_for_change(args: argparse.Namespace, layer: str, names: list[str], seen: dict[str, str]) -> dict[str, str]:
    while (now := look(args, layer, names)) == seen:
        time.sleep(LOOK_SECONDS)
    return now
