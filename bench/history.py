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


def parser() -> cli.Parser:
    p = cli.Parser({"--only": "--variant A,B"}, prog="python -m bench.history", description=__doc__)
    p.add_argument("layer", metavar="LAYER", help="a layer, or a model for its training step")
    p.add_argument("--variant", metavar="A,B", help="these alone")
    p.add_argument("--device", metavar="NAME", help="cpu, cuda, or a part of the model's name, for example H100")
    p.add_argument("--cache", choices=("cold", "warm"), default="cold", help="default cold")
    p.add_argument("--results", type=Path, default=HOME / "results", metavar="DIR", help="default results/")
    p.add_argument("--png", type=Path, metavar="FILE", help="also draw it (needs vl-convert-python)")
    p.add_argument("--html", type=Path, metavar="FILE", help="the same as a page that needs no network")
    p.add_argument("--json", action="store_true", help="the last line of stdout is one JSON document")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from bench.show import history

    points = history.chosen(args.results, args.layer, args.cache, args.variant, args.device)
    history.print_table(args.layer, points)
    for file in (args.png, args.html):
        if file:
            history.draw(args.layer, points, file)
            print(f"{'page' if file.suffix == '.html' else 'picture'}: {file}")
    if args.json:
        cli.print_json(history.document(args.layer, points))
    return cli.OK


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]))
