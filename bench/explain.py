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
    from bench.core.variants import discover, find
    from bench.show.explain import document, floors_of, ranks_of, show
    from reference import contract
    from reference.models import MODELS

    layer, _, name = args.what.partition(".")
    cli.choose(layer, contract.layer_names(), "layer")
    model = MODELS[cli.choose(args.model, MODELS, "model")]
    variants = [v for v in discover() if v.layer == layer]
    one = find(variants, layer, name) if name else None
    module = contract.load(layer)
    floors = floors_of(layer, model, args.dtype)
    ranks = ranks_of(layer, args.dtype)
    if args.json:
        cli.print_json(document(layer, module, floors, [one] if one else variants, ranks))
    else:
        show(layer, module, floors, variants, one, ranks, args)
    return cli.OK


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]))
