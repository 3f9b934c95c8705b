"""python -m bench.history LAYER: a layer's times over all result sets, the oldest first.

python -m bench.history attention                                  everything under results/
python -m bench.history layernorm --variant cpu.simd --device EPYC
python -m bench.history gpt2-124m --png history.png                the training step, as a picture too

A change is against the set before, on the same machine: "=" marks one that tells nothing: within the noise floor of
either, or the intervals meet. `bench.compare` says what two sets prove.
"""

import sys
from pathlib import Path

from bench import HOME, cli
from bench.cli import CannotGoOn


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.history", description=__doc__)
    p.add_argument("layer", metavar="LAYER", help="a layer, or a model for its training step")
    p.add_argument("--variant", metavar="A,B", help="these alone")
    p.add_argument("--device", metavar="NAME", help="cpu, cuda, or a part of the model's name, for example H100")
    p.add_argument("--cache", choices=("cold", "warm"), default="cold", help="default cold")
    p.add_argument("--results", type=Path, default=HOME / "results", metavar="DIR", help="default results/")
    p.add_argument("--png", type=Path, metavar="FILE", help="also draw it (needs vl-convert-python)")
    p.add_argument("--html", type=Path, metavar="FILE", help="the same as a page that needs no network")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from bench.records.read import load
    from bench.show.history import draw, history, print_table

    runs = load(args.results)
    cli.choose(args.layer, sorted({r.get("layer") or "" for run in runs for r in run.records}), "layer in the results")
    points = history(runs, args.layer, args.cache)
    if args.variant:
        known = sorted({p.case.variant for p in points})
        wanted = [cli.choose(v, known, f"variant of {args.layer} in the results") for v in args.variant.split(",")]
        points = [p for p in points if p.case.variant in wanted]
    if args.device:
        name = args.device.lower()
        points = [p for p in points if name == p.case.device.lower() or name in p.machine.lower()]
    if not points:
        on = f" on {args.device}" if args.device else ""
        raise CannotGoOn(f"no {args.cache} times of {args.layer}{on} in the results")
    print_table(args.layer, points)
    for file in (args.png, args.html):
        if file:
            draw(args.layer, points, file)
            print(f"picture: {file}")
    return cli.OK


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]))
