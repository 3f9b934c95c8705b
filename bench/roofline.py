"""python -m bench.roofline: write docs/roofline.md, what GPU kernels cannot be faster than on an H200, from counts.

python -m bench.roofline                        from what results/simulator-sm_90a/units.json has
python -m bench.roofline --check                write nothing; exit code 1 where the page is not what the counts give
python -m bench.roofline --count                count anew, in the simulator, what has another source now (minutes)
python -m bench.roofline --count matmul --only cuda.mma --all

Bounds, never times. No GPU is needed. Variants whose counts are of another source than they have now are named.
"""

from bench import HOME, cli

PAGE = HOME / "docs" / "roofline.md"


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.roofline", description=__doc__)
    p.add_argument("layer", nargs="*", help="with --count: these layers; default all")
    p.add_argument("--count", action="store_true", help="count what is missing, or has another source now")
    p.add_argument("--only", metavar="A,B", help="with --count: these variants, for example cuda.mma, or cuda.*")
    p.add_argument("--all", action="store_true", help="with --count: what is up to date as well")
    p.add_argument("--check", action="store_true", help="write nothing; exit code 1 where the page is stale")
    return p


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if not args.count and (args.layer or args.only or args.all):
        p.error("LAYER, --only and --all go with --count: the page is of all that was counted")
    from bench.core.files import write_atomically
    from bench.gpu import bounds_page, units
    from reference import contract

    if args.count:
        layers = [cli.choose(name, contract.layer_names(), "layer") for name in args.layer]
        known = sorted({v.name for v in units.variants()})
        only = cli.choose_all(args.only, known, "variant") if args.only else []
        print(f"counted: {units.update(layers, only, args.all)} variants")
    entries = units.read()
    if old := units.stale(entries):
        print(f"counted with another source, or not at all: {', '.join(old)}")
    text = bounds_page.page(entries)
    same = PAGE.exists() and PAGE.read_text() == text
    if not args.check and not same:
        write_atomically(PAGE, text)
    print(f"{PAGE.relative_to(HOME)}: {'as it was' if same else 'stale' if args.check else 'rewritten'}")
    return cli.FAILED if args.check and not same else cli.OK


if __name__ == "__main__":
    cli.run(main)
