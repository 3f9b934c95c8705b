"""python -m bench.sanitize LAYER: own GPU kernels under NVIDIA's compute-sanitizer, on the proof's small shapes.

    memcheck    reads and writes outside an allocation, misaligned ones
    racecheck   shared memory that two threads use without a barrier between them
    initcheck   global memory that is read before it was written
    synccheck   barriers that not all threads reach

The calls are made in one process without workers, on tensors that are allocations of their own, to the byte, and that
nobody has filled: what the proof finds by guard bands and poison, this finds at the access itself. The results are
not judged; the proof does that. All variants run together first; where a tool reports something, the halves run alone,
and their halves, until it is clear whose it is.

python -m bench.sanitize all --dtype bf16               every CUDA and Triton variant
python -m bench.sanitize gelu --only cuda.naive --pass forward
"""

import sys
from pathlib import Path

from bench import cli
from bench.core import WORKING_DTYPES
from bench.gpu import TOOLS


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.sanitize", description=__doc__)
    p.add_argument("layer", nargs="?", default="all", help="one or more, for example gelu,matmul; default all")
    p.add_argument("--only", metavar="A,B", help="these variants, for example cuda.naive,triton.fused, or cuda.*")
    p.add_argument("--pass", dest="phase", choices=("forward", "backward", "both"), default="both", help="default both")
    p.add_argument("--dtype", choices=WORKING_DTYPES, default="bf16", help="default bf16")
    p.add_argument("--tools", default=",".join(TOOLS), metavar="LIST", help=f"default {','.join(TOOLS)}")
    p.add_argument("--device", default="cuda", help="default cuda")
    p.add_argument("--kernels", action="append", default=[], metavar="DIR", help="more variants, same layout")
    p.add_argument("--seed", type=cli.seed, default=0, help="of the inputs, default 0")
    p.add_argument(
        "--time-limit", type=cli.above_zero, default=600.0, metavar="S", help="for everything, default 600 s"
    )
    p.add_argument("--out", type=Path, help="folder of this run (default: a new one under runs/)")
    p.add_argument("--json", action="store_true", help="the last line of stdout is one JSON document")
    p.add_argument(
        "--calls", metavar="LAYER/VARIANT/PASS,…", help="make these calls and nothing else: for a tool by hand"
    )
    return p


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    from bench.gpu import sanitizer

    tools = cli.choose_all(args.tools, TOOLS, "tool")
    there = sanitizer.passes_of(args.layer, args.kernels)
    if args.calls:
        calls = sanitizer.Calls(sanitizer.named(there, args.calls), args.dtype, args.seed, args.device)
        print(sanitizer.MADE, sanitizer.make_calls(calls))
        return cli.OK
    chosen = sanitizer.chosen(there, args.only, args.phase, args.dtype, args.device)
    calls = sanitizer.Calls(chosen, args.dtype, args.seed, args.device)
    return sanitizer.report(calls, tools, args.time_limit, args.out, argv, args.json)


if __name__ == "__main__":
    cli.run(main)
