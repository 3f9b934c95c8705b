"""python -m bench.import FILE --layer LAYER: a variant of a kernel that exists, and whether it is right.

python -m bench.import softmax_forward.cu --layer softmax --kernel softmax_forward_kernel4
python -m bench.import flash.cu --layer attention --into mine      kept outside this repository (--kernels mine)
python -m bench.import add.py --layer residual                     a Triton kernel

The kernel and the headers beside it are copied as they are. Its parameters are matched to the layer's contract by name
and type; grid, block and shared memory are those of the source's own launch. Lines that a person must decide have the
word DECIDE in them, and are printed; what no name says (who masks, how an attention's tensors lie) is tried first. Then
the variant is proved; a kernel that is wrong is tried on whole tiles alone, and where it is right on those, what is no
multiple is refused by a line of the file.
"""

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import cli

if TYPE_CHECKING:
    from bench.adopt.variant import Whole

READING_S = 300.0  # the compiler is asked for some types
# Multiples that sizes are tried with: tile, and what a product sums over; whether rows too. What is right for any is …
TILES = ((128, 64, True), (64, 64, True), (128, 16, True), (64, 64, False), (256, 64, True))
WHOLE = tuple({"tile": tile, "inner": tile} for tile in (64, 16, 8, 4))
LESS: tuple[dict[str, Any], ...] = (WHOLE[0], {"rows": False}, *WHOLE[1:])  # … asked less


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.import", description=__doc__)
    p.add_argument("file", type=Path, metavar="FILE", help="a .cu or .cuh, or a .py with Triton kernels")
    p.add_argument("--layer", required=True, help="what the kernel computes")
    p.add_argument("--kernel", metavar="NAME", help="which one, where the file has several: name, or name<float, 64>")
    p.add_argument("--name", metavar="WORD", help="of the variant (default: the kernel's)")
    p.add_argument(
        "--into", type=Path, metavar="DIR", help="a folder of variants outside this repository (--kernels DIR)"
    )
    p.add_argument("--no-proof", action="store_true", help="write the files, and prove nothing")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from bench.adopt import NONE_RIGHT, TILE
    from bench.core import process

    process.start_server("bench.adopt.reader")
    from bench.adopt.reader import Reader
    from bench.core.progress import Progress
    from bench.core.variants import discover, find

    how = args.file, args.layer, args.kernel, args.name, args.into
    with process.Process(Reader, limit=READING_S) as reader:

        def adopt(whole: "Whole | None" = None) -> tuple[list[Path], list[str], str]:
            try:
                return reader.ask("adopt", how=how, whole=whole)
            except process.ProcessFailed as failure:
                raise cli.CannotGoOn(
                    f"{args.file}: {failure}" if failure.status == process.CRASH else str(failure), failure.code
                ) from None

        with Progress() as progress:
            progress.tell(f"reading and matching {args.file}")
            written, decide, name = adopt()
        for path in written:
            print(f"written: {path}")
        for line in decide:
            print(f"to decide: {line}")
        prove = ["-m", "bench.layer", args.layer, "--only", name, "--check-only"]
        prove += ["--kernels", str(args.into)] if args.into else []
        has = find(discover((args.into,) if args.into else ()), args.layer, name).dtypes
        prove += [] if "fp32" in has else ["-a", f"dtype={','.join(has)}"]
        print(f"prove it: python {' '.join(prove)}", flush=True)
        if args.no_proof:
            return cli.OK
        code = subprocess.run([sys.executable, *prove]).returncode
        if code == cli.OK and any(NONE_RIGHT in line for line in decide):
            print("right for all that the proof has of what it takes, and wrong in a trial of whole tiles", flush=True)
            return cli.WRONG
        if code != cli.WRONG:
            return code
        if any(TILE not in line for line in decide) or not (tiles := in_whole_tiles(adopt, written[0], prove)):
            print(f"wrong as it was matched, by names: {launched(written[0].read_text())}", flush=True)
            return code
    print(f"right for multiples of {tiles}: lines of {written[0]} refuse other sizes", flush=True)
    return subprocess.run([sys.executable, *prove]).returncode


def in_whole_tiles(adopt: "Callable[[Whole], object]", file: Path, prove: list[str]) -> str:
    """Multiples that a kernel is right for, and the variant's file refuses other sizes; "" where it is wrong for those,
    too, and the file is as it was."""
    from bench.adopt.variant import Whole
    from bench.core.progress import Progress

    kept = file.read_text()
    with Progress() as progress, tempfile.TemporaryDirectory() as runs:

        def cases(whole: Whole) -> int:
            """For how many it is right; 0 where it is wrong for any."""
            progress.tell(f"wrong for some sizes: trying multiples of {whole.tile}")
            adopt(whole)
            command = [sys.executable, *prove, "--json", "--out", f"{runs}/{whole.tile}-{whole.inner}-{whole.rows}"]
            done = subprocess.run(command, capture_output=True, text=True)
            return 0 if done.returncode else sum(r["proof_cases"] or 0 for r in told(done.stdout))

        tried = ((whole, cases(whole)) for whole in itertools.starmap(Whole, TILES))
        found, right = next((one for one in tried if one[1]), (None, 0))
        if found is None:
            file.write_text(kept)
            return ""
        for change in LESS:
            less = replace(found, **change)
            if less != found and (n := cases(less)) > right:  # what no case has is nothing that it is right for
                found, right = less, n
    adopt(found)
    return " and ".join(dict.fromkeys((str(found.tile), str(found.inner))))


def launched(text: str) -> str:
    """What a variant's file gives the kernel, for who wants to know whether it is the kernel that is wrong."""
    lines = [line.strip() for line in text.splitlines()]
    launches = (line for line in lines if line.startswith("launch(") or "_kernel[" in line or ",)](" in line)
    return next(launches, "")[:300]


def told(stdout: str) -> list[dict]:
    """The records of a run that ended with its document."""
    return json.loads(stdout.splitlines()[-1])["records"]


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]))
