"""python -m bench.static [LAYER …]: compile every GPU kernel for several GPUs, without one, and say what it needs.

python -m bench.static                                 all layers, sm_80, sm_90a, sm_100a, fp32 and bf16
python -m bench.static attention --only cuda.shared --arch sm_90a
python -m bench.static --out results/static            also writes static.csv there

Which instances of a kernel are compiled is found by calling each variant at its gpt2-124m shapes (B=4 and 64) and at
all other models' (B=4) with a launcher that only writes down; a Triton variant with every configuration of its tables,
attention's windows with the first. Exit code 2: a compile error, a spill that the variant's SPILLS does not allow, or
TENSOR_CORES = True without a tensor-core instruction.
"""

from pathlib import Path

from bench import HOME, cli
from bench.core import WORKING_DTYPES
from bench.gpu import ARCHS


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.static", description=__doc__)
    p.add_argument("layer", nargs="*", help="layers; default all")
    p.add_argument("--only", metavar="A,B", help="these variants, for example cuda.shared, or triton.*")
    p.add_argument("--arch", default=",".join(ARCHS), help=f"default {','.join(ARCHS)}")
    p.add_argument("--dtype", default="fp32,bf16", help="default fp32,bf16")
    p.add_argument("--kernels", action="append", default=[], metavar="DIR", help="more variants, same layout")
    p.add_argument("--out", type=Path, metavar="FOLDER", help="write static.csv there")
    p.add_argument(
        "--table",
        action="store_true",
        help="instead, compile what results/ lacks of the calls that are timed on a GPU (--arch sm_90a): a changed "
        "source, another compiler, a new variant",
    )
    p.add_argument("--jobs", type=cli.count, default=0, help="compilations at once (default: the cores)")
    p.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from bench.core.progress import Progress
    from bench.gpu import resources

    archs = cli.choose_all(args.arch, ARCHS, "architecture")
    dtypes = cli.choose_all(args.dtype, WORKING_DTYPES, "dtype")
    variants = resources.chosen(args.layer, args.only, args.kernels)
    resources.prepare(args.out)
    if args.table:
        from bench.gpu import table

        archs = archs if args.arch != ",".join(ARCHS) else [table.ARCH]
        print(f"{table.update(variants, archs, dtypes, args.jobs)} compiled: {table.TABLE.relative_to(HOME)}")
        return cli.OK
    with Progress():
        rows = resources.compile_all(variants, archs, dtypes, args.jobs)
    if args.json:
        cli.print_json({"kernels": [r.row() for r in rows]})
    else:
        resources.show(rows)
    if args.out:
        resources.write_csv(rows, args.out)
    return cli.WRONG if any(r.fault for r in rows) else cli.OK


if __name__ == "__main__":
    cli.run(main)
