"""python -m bench.new LAYER NAME --backend BACKEND: a new variant that runs and passes, to be made fast.

python -m bench.new gelu mine --backend triton                 kernels/triton/gelu/mine.py
python -m bench.new matmul tiled --backend cuda --into DIR      the same layout outside this repository
python -m bench.new --layer swish                               a new layer: its contract, and a first variant

It starts as a copy of the simplest variant that the backend has: correct, with the contract's signature. A new layer
has none: there it is a copy of another layer's with the same tensors, whose formula is to be replaced. What to type
next is printed.
"""

import sys
from pathlib import Path

from bench import cli
from bench.cli import CannotGoOn
from bench.core import BACKENDS


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.new", description=__doc__)
    p.add_argument("of", nargs="?", metavar="LAYER", help="the layer that the variant computes")
    p.add_argument("name", nargs="?", metavar="NAME", help="of the variant: a word, as its file is called")
    p.add_argument("--backend", choices=tuple(BACKENDS), help="what it is written in")
    p.add_argument("--layer", metavar="NEW", help="start a new layer instead: its contract and a PyTorch variant")
    p.add_argument(
        "--into", type=Path, metavar="DIR", help="a folder of variants outside this repository (--kernels DIR)"
    )
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from bench.core import scaffold

    if args.layer:
        if args.of or args.backend or args.into:
            raise CannotGoOn("--layer starts a layer of its own: no LAYER, --backend or --into with it", cli.USAGE)
        written, commands = scaffold.new_layer(args.layer)
    elif not (args.of and args.name and args.backend):
        raise CannotGoOn("say which: python -m bench.new LAYER NAME --backend triton|cuda|cpu|torch", cli.USAGE)
    else:
        written, commands = scaffold.new_variant(args.of, args.name, args.backend, args.into)
    for path in written:
        print(f"written: {path}")
    print("next:")
    for command in commands:
        print(f"    {command}")
    return cli.OK


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]))
