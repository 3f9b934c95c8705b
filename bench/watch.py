"""`bench.layer LAYER --only backend.name --watch`: prove and time a variant again after every save.

Small shapes come first, so that most mistakes are told within a second; what is right is then timed at the first shape,
beside PyTorch's variants. Nothing is kept: a run that counts is one without --watch. Ctrl-C ends it.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import cli
from bench.cli import CannotGoOn

if TYPE_CHECKING:
    from bench.registry import Variant

LOOK_SECONDS = 0.3  # between two looks at the files
SECONDS = 3.0  # of timing a shape and pass
BASELINES = ("torch.eager", "torch.compile")


def watch(args: argparse.Namespace, layer: str, wait: Callable[[Any], Any] | None = None) -> int:
    """Go on until Ctrl-C. `wait` takes what was seen of the files and answers once that has changed."""
    if not args.only:
        raise CannotGoOn("--watch wants to know which variant: --only backend.name", cli.USAGE)
    names = args.only.split(",")
    wait = wait or (lambda seen: wait_for_change(args, layer, names, seen))
    while True:
        seen = look(args, layer, names)
        try:
            if once(args, layer) == cli.OK:
                race(args, layer)
        except CannotGoOn as error:  # the file cannot be read just now: it is being written
            print(f"error: {error}", flush=True)
        print(f"\nwaiting for a change of {', '.join(names)} (Ctrl-C ends)", flush=True)
        if wait(seen) is None:
            return cli.OK


def once(args: argparse.Namespace, layer: str) -> int:
    """The proof."""
    return _run(args, layer, check_only=True)


def race(args: argparse.Namespace, layer: str) -> int:
    """Times at the first shape, beside the baselines that there are."""
    here = [v.name for v in _variants(args) if v.layer == layer]
    beside = [name for name in BASELINES if name in here and name not in args.only.split(",")]
    return _run(args, layer, check_only=False, only=",".join([args.only, *beside]), shape=_first_shape(args, layer))


def _run(args: argparse.Namespace, layer: str, **changes: Any) -> int:
    from bench.layer import Session

    with tempfile.TemporaryDirectory(prefix="layerbench-watch-") as folder:
        changed = {**vars(args), "out": Path(folder) / "run", "seconds": min(args.seconds, SECONDS), **changes}
        return Session(argparse.Namespace(**changed), [], [layer], _variants(args)).run()


def _variants(args: argparse.Namespace) -> list["Variant"]:
    from bench import registry

    return registry.discover(tuple(Path(d) for d in args.kernels))


def _first_shape(args: argparse.Namespace, layer: str) -> str:
    from reference import contract
    from reference.models import MODELS

    model, slash, _ = args.shape.partition("/")
    first = next(iter(contract.load(layer).shapes(MODELS[model], contract.DEFAULT_B, 64)))
    return args.shape if slash or not first else f"{model}/{first}"


def look(args: argparse.Namespace, layer: str, names: list[str]) -> dict[str, str]:
    """The state of the variants' sources; of one that cannot be read, that."""
    try:
        return {v.name: v.source_hash() for v in _variants(args) if v.layer == layer and v.name in names}
    except (CannotGoOn, OSError) as error:
        return {"error": str(error)}


def wait_for_change(args: argparse.Namespace, layer: str, names: list[str], seen: dict[str, str]) -> dict[str, str]:
    while (now := look(args, layer, names)) == seen:
        time.sleep(LOOK_SECONDS)
    return now
