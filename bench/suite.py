"""python -m bench.suite --out DIR: everything this project measures on a machine, within a given time.

In this order: what the machine is (bench.doctor); every variant proved, in bf16 and fp32, and on a GPU looked at by
compute-sanitizer; all layers timed at the model's shapes; the training step against PyTorch (bench.e2e). Each part is
one of the other commands in a process of its own, with a folder of its own under DIR. A part that crashes or takes
longer than its share of the time is written down and the next goes on; what a part leaves over is for those after it.

    DIR/records.jsonl       what became of each part; DIR/logs/ holds what it printed
    DIR/doctor.json         the machine
    DIR/check-LAYER/ …      results of the parts: runs like any other (bench.report, bench.compare)
    DIR/summary.md, .json   the fastest variant of each layer, what failed and why, the training step

python -m bench.suite --out runs/here                       nine minutes, on the GPU where there is one
python -m bench.suite --out runs/here --resume              go on with what is missing
python -m bench.suite --out runs/quick --layers gelu,residual --model gpt2-tiny --minutes 2
"""

import sys
from pathlib import Path

from bench import cli
from bench.records import PACK_FILES
from bench.trial import STAGES


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.suite", description=__doc__)
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    p.add_argument("--resume", action="store_true", help="go on in DIR: run what has not finished there")
    p.add_argument("--pack", action="store_true", help=f"also DIR/pack: at most {PACK_FILES} .tar.gz files of 16 MiB")
    what = p.add_argument_group("what to run")
    what.add_argument("--device", help="default cuda where torch sees a GPU, else cpu")
    what.add_argument("--minutes", type=cli.above_zero, default=9.0, metavar="M", help="for everything, default 9")
    what.add_argument("--stage", choices=(*STAGES, "all"), default="all", help="default all")
    what.add_argument("--layers", metavar="A,B", help="these layers alone")
    what.add_argument("--model", default="gpt2-124m", help="whose shapes and training step, default gpt2-124m")
    what.add_argument(
        "--kernels", action="append", default=[], metavar="DIR", help="more variants, for all but the training step"
    )
    p.add_argument("--json", action="store_true", help="the last line of stdout is one JSON document")
    return p


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    from bench.trial import suite

    plan = suite.plan_of(**vars(args), argv=argv)
    return suite.Suite(plan, suite.stages(plan)).run()


if __name__ == "__main__":
    cli.run(main)
