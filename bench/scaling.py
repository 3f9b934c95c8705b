"""How many tokens a second many ranks would train, predicted from one rank's step and the link between them.

    python -m bench.scaling RUN --bandwidth 25 --latency 5 --node 8 --between 12.5
    torchrun --nproc_per_node 2 -m bench.scaling --measure-link --out link.json         the link, measured
    python -m bench.scaling RUN RUN2 --link link.json                                   RUN2 ran on several ranks

RUN is a run of bench.e2e, whose step was timed call by call, or of bench.train on one rank (its steps are then spread
over the calls by FLOPs). Runs of bench.train on several ranks are put beside what is predicted of them. One rank takes

    t1 = m (forward + backward) + norm + AdamW + rest            m micro-batches

Summing S bytes of gradients over N ranks, of which each sends b bytes a second and a message needs a seconds, takes

    ring   2 (N - 1) (a + S / (N b))           (Patarasuk and Yuan 2009)
    tree   2 (ceil(log2 N) a + S / b)          (Sanders, Speck and Träff 2009)

Without overlap a step is t1 + all sums. With overlap a bucket's sum begins when the last call that writes into it has
ended and the sum before it is over (Li et al. 2020), and a step is t1 + what of the last one is left after backward.
The gradient of a tied head, the largest, is final last. --optimizer sharded: half of each sum (a reduce-scatter),
AdamW / N, then an all-gather of all parameters, which nothing hides (Rajbhandari et al. 2020). Beyond --node ranks the
slower link counts.

Efficiency is tokens a second over N times one rank's. It is an upper bound: ranks wait for nothing but sums, and a sum
takes nothing from the calls beside it. Ranks that share a machine's cores or its memory are slower. docs/scaling.md.
"""

import argparse
from pathlib import Path

from bench import cli
from bench.trainer import OPTIMIZERS

RANKS = tuple(1 << n for n in range(10))
LATENCY_US = 10.0


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.scaling", description=__doc__)
    p.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders of runs (see above)")
    link = p.add_argument_group("the link")
    link.add_argument(
        "--bandwidth", type=cli.above_zero, metavar="GB/S", help="that a rank sends while it receives as much"
    )
    link.add_argument(
        "--latency", type=cli.above_zero, metavar="US", help=f"of a message, microseconds; default {LATENCY_US:g}"
    )
    link.add_argument("--link", type=Path, metavar="FILE", help="both, as --measure-link wrote them")
    link.add_argument("--node", type=cli.count, metavar="N", help="ranks on one machine; default: no limit")
    link.add_argument(
        "--between", type=cli.above_zero, metavar="GB/S", help="of a rank to other machines; default as --bandwidth"
    )
    link.add_argument("--way", choices=("ring", "tree"), default="ring", help="how sums are made, default ring")
    link.add_argument("--measure-link", action="store_true", help="under torchrun or srun: measure it and end")
    link.add_argument("--device", default="cpu", help="whose link is measured: cpu (default) or cuda")
    link.add_argument("--out", type=Path, metavar="FILE", help="where --measure-link writes it")
    what = p.add_argument_group("what is predicted")
    what.add_argument("--ranks", type=_counts, default=RANKS, metavar="LIST", help="default 1,2,4,…,512")
    what.add_argument(
        "--total-batch",
        type=cli.count,
        metavar="TOKENS",
        help="tokens a step of all ranks together; default: each rank does what the measured one did",
    )
    what.add_argument("--optimizer", choices=OPTIMIZERS, default=OPTIMIZERS[0], help=f"default {OPTIMIZERS[0]}")
    what.add_argument("--bucket-mb", type=cli.above_zero, metavar="MB", help="of gradients, default bench.train's")
    p.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return p


def _counts(text: str) -> tuple[int, ...]:
    return tuple(cli.count(word) for word in text.split(","))


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.measure_link:
        return measure(args)
    if args.out:
        raise cli.CannotGoOn("--out goes with --measure-link; what is predicted is printed, or --json", cli.USAGE)
    if not args.runs:
        raise cli.CannotGoOn("of which run? as in: python -m bench.scaling RUN --bandwidth 25 (--help)", cli.USAGE)
    if (args.bandwidth is None) == (args.link is None):
        raise cli.CannotGoOn("which link? --bandwidth GB/S or --link FILE, one of them", cli.USAGE)
    if args.between and not args.node:
        raise cli.CannotGoOn("--between needs --node, the ranks on one machine", cli.USAGE)
    from dataclasses import replace

    from bench.show import scaling as show
    from bench.trainer import reduction, scaling

    if args.link:
        link = scaling.read_link(args.link)
        latency = link.latency if args.latency is None else args.latency / 1e6
    else:
        link, latency = scaling.Link(args.bandwidth * 1e9, 0.0), (args.latency or LATENCY_US) / 1e6
    between = args.between * 1e9 if args.between else None
    link = replace(link, latency=latency, node=args.node or 0, between=between, way=args.way)
    nbytes = int(args.bucket_mb * 1e6) if args.bucket_mb else reduction.BUCKET_BYTES
    parts, runs = scaling.read(args.runs)
    found = [scaling.forecast(parts, link, n, args.optimizer, nbytes, args.total_batch) for n in args.ranks]
    rows = [row for row in found if row]
    compared = scaling.compared(parts, link, runs, nbytes)
    said = scaling.document(parts, link, rows, compared, nbytes)
    if args.json:
        cli.print_json(said)
        return cli.OK
    show.print_scaling(said)
    for n in (n for n, row in zip(args.ranks, found, strict=True) if row is None):
        cli.say(f"{n} ranks cannot share {args.total_batch:,} tokens in whole micro-batches of {parts.sizes}")
    return cli.OK


def measure(args: argparse.Namespace) -> int:
    from bench.trainer.peers import Peers
    from bench.trainer.scaling import measure_link, write_link

    peers = Peers.join()
    if peers.ranks == 1:
        raise cli.CannotGoOn("a link is between ranks: torchrun --nproc_per_node 2 -m bench.scaling …", cli.USAGE)
    with peers.one_voice():
        device = peers.on(args.device)
        link = measure_link(peers, device)
        if peers.main:
            if args.out:
                write_link(args.out, link, peers.ranks, device)
            if args.json:
                cli.print_json({"bandwidth": link.bandwidth, "latency": link.latency, "ranks": peers.ranks})
            else:
                print(f"{peers.ranks} ranks: {link.bandwidth / 1e9:.3g} GB/s, {link.latency * 1e6:.3g} µs a message")
        peers.leave()
    return cli.OK


if __name__ == "__main__":
    cli.run(main)
