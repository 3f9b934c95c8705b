"""A command over a grid of its options, one job a case, each with a run folder of its own.

    python -m bench.sweep train gpt2-tiny -a lr=1e-4,3e-4 -a seed=0,1 --out runs/lr -- --steps 200 --val-every 50
    python -m bench.sweep layer gelu layernorm -a dtype=fp32,bf16 --out runs/grid -- --check-only
    python -m bench.sweep train gpt2-124m -a lr=3e-4,6e-4 --executor slurm --gpus 1 --minutes 120 --out /shared/lr

Cases are all combinations of what is named (models, or layers) and the values of every -a. `train` takes -a NAME=V,V as
--NAME V, `layer` as its own -a. Values that hold a comma are written with semicolons between them:
-a 'kernels=cpu;fastest,attention=cpu.naive'. What follows -- is the same for all.

    DIR/sweep.json        the cases and their command lines
    DIR/CASE/             the run: bench.report DIR and bench.compare read them all
    DIR/logs/CASE.log     what it printed; DIR/logs/CASE.json says how it ended

--executor local runs --jobs of them at a time here, one after the other where nothing is said: runs that are timed
beside each other are slower. --executor slurm hands them to Slurm as one array, through submitit (pip install
'layerbench[sweep]'); DIR must be seen by all machines. With --ranks a case is that many processes that train together.
--resume goes on in DIR: what has ended well is left, what was cut off goes on where it was. docs/scaling.md.
"""

import sys
from pathlib import Path

from bench import cli

KINDS = ("layer", "train")


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.sweep", description=__doc__)
    p.add_argument("kind", choices=KINDS, help="the command that is run")
    p.add_argument("targets", nargs="+", metavar="WHAT", help="models to train, or layers")
    p.add_argument("-a", "--axis", action="append", default=[], metavar="NAME=V,V", help="an option and its values")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the sweep")
    p.add_argument("--resume", action="store_true", help="go on with what has not ended well in DIR")
    p.add_argument("--executor", choices=("local", "slurm"), default="local", help="default local")
    p.add_argument("--jobs", type=cli.count, metavar="N", help="at a time; default 1, on Slurm as many as it likes")
    slurm = p.add_argument_group("for Slurm")
    slurm.add_argument("--minutes", type=cli.count, default=60, metavar="M", help="for a case, default 60")
    slurm.add_argument("--ranks", type=cli.count, default=1, metavar="N", help="processes of a case, default 1")
    slurm.add_argument("--gpus", type=cli.count, metavar="N", help="of a case; default none")
    slurm.add_argument("--cpus", type=cli.count, metavar="N", help="of each process; default Slurm's")
    slurm.add_argument("--partition", metavar="NAME", help="default Slurm's")
    slurm.add_argument("--no-wait", action="store_true", help="submit, and leave; --resume looks again")
    p.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return p


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    args = parser().parse_args(argv[:cut])
    from bench.trainer import sweep

    if args.executor == "local" and (args.no_wait or args.gpus or args.cpus or args.partition or args.ranks > 1):
        raise cli.CannotGoOn("--ranks, --gpus, --cpus, --partition, --no-wait: with --executor slurm", cli.USAGE)
    wishes = sweep.Wishes(args.minutes, args.ranks, args.gpus, args.cpus, args.partition, args.jobs, not args.no_wait)
    cases = sweep.cases(args.kind, args.targets, args.axis, argv[cut + 1 :])
    return sweep.command(args.out, cases, args.executor, wishes, args.resume, args.json)


if __name__ == "__main__":
    cli.run(main)
