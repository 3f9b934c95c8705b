"""python -m bench.layer LAYER: prove every variant of a layer right, then time it, and show both in one table.

python -m bench.layer list                            all layers, variants, and what cannot run here and why
python -m bench.layer attention --all                 prove and time everything, gpt2-124m shapes
python -m bench.layer all --check-only                prove everything, time nothing
python -m bench.layer matmul --only cpu.simd,torch.eager --pass forward --shape gpt2-124m/qkv
python -m bench.layer layernorm --all -a T=256,1024 -a dtype=fp32,bf16
python -m bench.layer attention --device cuda -a dtype=bf16
python -m bench.layer --resume runs/FOLDER            go on with what was interrupted
"""

import sys
from pathlib import Path

from bench import cli
from bench.trial import ROOMS

# What other commands call an option is an axis of the shape here.
INSTEAD = {"--dtype": "-a dtype=bf16", "--batch": "-a B=8", "--seq": "-a T=256", "--model": "--shape MODEL"}


def parser() -> cli.Parser:
    p = cli.Parser(INSTEAD, prog="python -m bench.layer", description=__doc__)
    p.add_argument("layer", nargs="?", help="a layer's name, `all`, or `list`")
    what = p.add_argument_group("what to run")
    what.add_argument(
        "--all",
        action="store_true",
        help="all variants, as without both --all and --only; where there is no GPU, its kernels in the simulator",
    )
    what.add_argument("--only", metavar="A,B", help="these variants, for example cpu.simd,torch.eager, or cuda.*")
    what.add_argument(
        "--pass", dest="phase", choices=("forward", "backward", "both"), default="both", help="default both"
    )
    what.add_argument("--shape", default="gpt2-124m", metavar="MODEL[/NAME]", help="default gpt2-124m: all its shapes")
    what.add_argument(
        "-a",
        "--axis",
        action="append",
        default=[],
        metavar="NAME=V,V",
        help="sweep an axis: B, T, dtype (fp32, bf16), or any symbol of the shape",
    )
    what.add_argument("--without", metavar="A,B", help="all but these, for example *.naive")
    what.add_argument("--check-only", action="store_true", help="prove, do not time")
    what.add_argument("--count", action="store_true", help="with --check-only: count what simulated kernels move, too")
    what.add_argument("--smoke", action="store_true", help="launch each variant once and compare one case: no proof")
    what.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    what.add_argument("--simulate", action="store_true", help="run GPU kernels in the simulator, though there is a GPU")
    what.add_argument("--no-simulate", action="store_true", help="leave GPU kernels out where there is no GPU")
    what.add_argument("--kernels", action="append", default=[], metavar="DIR", help="more variants, same layout")
    how = p.add_argument_group("how to measure")
    how.add_argument("--seed", type=cli.seed, help="second seed of the proof (default random, printed)")
    how.add_argument("--seconds", type=cli.above_zero, default=12.0, help="for each shape and pass, default 12")
    how.add_argument("--cache", default="cold,warm", help="cold, warm, or cold,warm (default)")
    how.add_argument(
        "--processes", type=cli.count, default=1, help="fresh processes for each variant, default 1 (publish with 2)"
    )
    how.add_argument(
        "--time-limit",
        type=cli.above_zero,
        default=60.0,
        metavar="S",
        help="for a case, default 60 s; five times that where it compiles",
    )
    how.add_argument(
        "--proofs", type=Path, metavar="DIR", help="take over proofs of the same sources from there, and add to them"
    )
    how.add_argument("--watch", action="store_true", help="prove and time again after each save (with --only)")
    how.add_argument("--sanitize", action="store_true", help="run each proved variant under compute-sanitizer too")
    how.add_argument(
        "--profile", type=Path, metavar="OUT", help="no timing: traces and ranges.csv of each right variant"
    )
    how.add_argument(
        "--threads", type=cli.cores, default=0, help="CPU threads (default: torch's choice, which is one a core)"
    )
    out = p.add_argument_group("results")
    out.add_argument("--out", type=Path, help="folder of this run (default: a new one under runs/)")
    out.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with an interrupted run: its own command")
    out.add_argument("--json", action="store_true", help="the last line of stdout is one JSON document")
    return p


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    p = parser()
    args = p.parse_args(argv)
    if not (args.layer or args.resume):
        p.error("the following arguments are required: layer")
    if args.all and args.only:
        p.error("--all and --only: one of them")
    if args.layer == "list" and (args.only or args.without or args.axis or args.out or args.resume):
        p.error("list shows every variant, and goes with --kernels, --device and --json alone")
    from bench.core import process

    process.start_server(*ROOMS)
    from bench.trial import plan, resume, session, watch

    if args.resume:
        args, argv = resume.gone_on_with(parser, argv, args.resume, "layer")
        if not args.layer:
            raise cli.CannotGoOn(f"no run to resume in {args.resume}: say which layer")
    if args.layer == "list":
        return session.list_layers(args.kernels, args.device, args.json)
    made = plan.plan_of(**vars(args), argv=argv)
    return watch.watch(made) if args.watch else session.Session(made).run()


if __name__ == "__main__":
    cli.run(main)
