"""python -m bench.explain LAYER[.VARIANT]: what a layer is, its floor on this machine, and how its variants rank.

python -m bench.explain attention                   contract, formula, floor, every variant's story and rank
python -m bench.explain attention.cpu.flash          the same for one variant, with all that its file says

Ranks come from runs that were measured on this machine, here (runs/) or committed (results/); nothing is measured now.
"""

import sys

from bench import cli
from bench.core import WORKING_DTYPES


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.explain", description=__doc__)
    p.add_argument("what", metavar="LAYER[.VARIANT]", help="for example attention, or attention.cpu.flash")
    p.add_argument("--model", default="gpt2-124m", help="whose shapes; default gpt2-124m")
    p.add_argument("--dtype", default="fp32", choices=WORKING_DTYPES, help="default fp32")
    p.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from bench.show import explain

    found = explain.explained(args.what, args.model, args.dtype)
    if args.json:
        cli.print_json(explain.document(found))
    else:
        explain.show(found)
    return cli.OK


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]))
