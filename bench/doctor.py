"""python -m bench.doctor: what this machine is, what can run on it, how fast it goes, how well it measures.

python -m bench.doctor              the first time about 15 s, later about 5 s
python -m bench.doctor --refresh    measure the ceilings again
python -m bench.doctor --json       the last line of stdout is one JSON document
"""

from bench import cli


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.doctor", description=__doc__)
    p.add_argument("--refresh", action="store_true", help="measure the ceilings again")
    p.add_argument("--json", action="store_true", help="the last line of stdout is one JSON document")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from bench.show import examination

    found = examination.examined(args.refresh)
    if args.json:
        cli.print_json(found)
    return cli.OK


if __name__ == "__main__":
    cli.run(main)
