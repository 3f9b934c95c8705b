"""python -m bench.readme_tables [FILE…]: rewrite tables and pictures between markers from committed results.

A marker is one line, `<!-- table KIND FOLDER OPTION=VALUE… -->`, closed by `<!-- end -->`. KIND is

    layers   one row a layer, shape and pass: the fastest right variant that is not PyTorch's, beside PyTorch's fastest
    variants one row a variant (options: layer, phase)
    step     one row a contestant of a training step
    gpu      one row a layer and pass of a GPU's runs, dashes where nothing was measured
    counted  one row a simulated variant and pass: what the simulator and the compiler counted (options: dtype, layers)
    imported one row a line of a file of verdicts on kernels that bench.import took
    drawn    the same of kernels that were drawn by chance, with the lines of glue that a person wrote

`<!-- chart NAME FOLDER PICTURE -->` draws the report's first chart whose name begins so as an .svg, and shows it; what
it was drawn from is kept beside it in a few letters. So no number in a document is typed by hand. With --check nothing
is written; exit code 1 where something is stale.
"""

import sys
from pathlib import Path

from bench import HOME, cli

DOCUMENTS = ("docs/generation.md", "docs/bring_a_kernel.md")


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.readme_tables", description=__doc__)
    p.add_argument(
        "files",
        nargs="*",
        type=Path,
        default=[HOME / name for name in ("README.md", "results/README.md", *DOCUMENTS)],
        metavar="FILE",
        help=f"default: both README.md, {' and '.join(DOCUMENTS)}",
    )
    p.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a table is stale")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from bench.show import markdown

    stale = [markdown.shown(file) for file in args.files if markdown.rewrite_file(file, args.check)]
    print(f"{'stale' if args.check else 'rewritten'}: {', '.join(stale) or 'nothing'}")
    return cli.FAILED if stale and args.check else cli.OK


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]))
