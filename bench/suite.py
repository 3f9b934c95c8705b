"""python -m bench.suite --out DIR: everything this project measures on a machine, within a given time.

The work is a queue of small pieces, the worthiest first: on a GPU one look at every kernel; the training step, quick;
attention and matmul; what the machine is (bench.doctor); the layers bound by memory, each proved before it is timed at
the model's shapes; proofs in the other dtype; the training step against PyTorch (bench.e2e); on a GPU a small model's
text (bench.generate) and compute-sanitizer. Each piece is one of the other commands with a folder of its own under DIR.
One that crashes or hangs is written down and the next goes on; what does not fit into the time is cut or passed over.
How long pieces take is learned as they end. After each of them everything is on disk and packed: whatever ends the
suite, what it had is there, and --resume goes on.

    DIR/records.jsonl       what became of each piece; DIR/logs/ holds what it printed
    DIR/doctor.json         the machine
    DIR/check-LAYER-… …     results of the pieces: runs like any other (bench.report, bench.compare)
    DIR/proofs/             what was proved: not proved again before it is timed, nor after --resume
    DIR/summary.md, .json   the fastest variant of each layer, what failed and why, the training step
    DIR/pack/               all of it in a few .tar.gz files to take home

python -m bench.suite --out runs/here                       nine minutes, on the GPU where there is one
python -m bench.suite --out runs/here --resume              go on with what is missing
python -m bench.suite --out runs/quick --layers gelu,residual --model gpt2-tiny --minutes 2
python -m bench.suite --prepare FILE                        without a GPU: compile what one will need, see docs/gpu.md
"""

import importlib.util
import sys
from pathlib import Path

from bench import cli
from bench.records import PACK_FILES
from bench.trial import GPU_TIMED_B, STAGES

NEEDED = ("torch", "numpy", "rich")  # without these nothing runs
OF_GPU = {"cupy": "cuda.* are skipped", "cuda.bindings": "cuda.* are skipped", "triton": "triton.* are skipped"}
OF_GPU |= {"pynvml": "rows have neither the card's name nor clocks and energy"}
OF_STEP = {"tiktoken": "the training step is skipped", "tokenizers": "the training step is skipped"}


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.suite", description=__doc__)
    p.add_argument(
        "--out", type=Path, metavar="DIR", help=f"folder of the results; DIR/pack: at most {PACK_FILES} files"
    )
    p.add_argument("--pack", type=Path, metavar="DIR", help="where the archives to take home lie (default: DIR/pack)")
    p.add_argument("--resume", action="store_true", help="go on in DIR: run what has not finished there")
    what = p.add_argument_group("what to run")
    what.add_argument("--device", help="default cuda where torch sees a GPU, else cpu")
    what.add_argument("--minutes", type=cli.above_zero, default=9.0, metavar="M", help="for everything, default 9")
    what.add_argument("--stage", choices=(*STAGES, "all"), default="all", help="default all")
    what.add_argument("--layers", metavar="A,B", help="these layers alone")
    what.add_argument("--model", default="gpt2-124m", help="whose shapes and training step, default gpt2-124m")
    what.add_argument(
        "--batch",
        type=cli.count,
        metavar="B",
        help=f"sequences that layers are timed at; default {GPU_TIMED_B} on a GPU",
    )
    what.add_argument(
        "--kernels", action="append", default=[], metavar="DIR", help="more variants, for all but the training step"
    )
    what.add_argument("--data", type=Path, metavar="PATH", help="what the training step trains on, as for bench.e2e")
    prepared = p.add_argument_group("what a cold GPU would compile")
    prepared.add_argument("--prepare", type=Path, metavar="FILE", help="write an archive of it, and run nothing")
    prepared.add_argument("--prepared", type=Path, metavar="FILE", help="use such an archive, as far as it fits")
    p.add_argument("--json", action="store_true", help="the last line of stdout is one JSON document")
    return p


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = vars(parser().parse_args(argv))
    tell_missing(args["device"])
    prepare, prepared = args.pop("prepare"), args.pop("prepared")
    if prepare:
        from bench.gpu import archive

        return archive.prepare(prepare, args["layers"], args["model"], args["batch"] or GPU_TIMED_B)
    if not args["out"]:
        raise cli.CannotGoOn("--out DIR says where the results go", cli.USAGE)
    if prepared:
        from bench.gpu import archive

        args["data"] = args["data"] or archive.use(prepared)
    from bench.trial import resume, suite

    if args["resume"]:
        again, argv = resume.gone_on_with(parser, argv, args["out"], "suite")
        args = {name: (name == "data" and args["data"]) or value for name, value in vars(again).items() if name in args}
    return suite.suite_of(suite.plan_of(**args, argv=argv)).run()


def tell_missing(device: str | None) -> None:
    """Say which packages are not there: nothing is installed on the way. CannotGoOn without those that all need."""
    missing = [name for name in NEEDED if not found(name)]
    if missing:
        way = "`make setup` installs them, where there is a network"
        raise cli.CannotGoOn(f"not installed for {sys.executable}: {', '.join(missing)}; {way}", cli.CANNOT_RUN)
    wanted = OF_STEP | (OF_GPU if (device or "").startswith("cuda") else {})
    for name, without in wanted.items():
        if not found(name):
            cli.say(f"not installed: {name}; {without}")
    from bench.machine import facts

    if old := facts.too_old_a_torch():
        cli.say(old)


def found(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # of a package inside one that is missing
        return False


if __name__ == "__main__":
    cli.run(main)
