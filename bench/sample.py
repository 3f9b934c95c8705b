"""Write text with what a training run has learnt so far.

    python -m bench.sample RUN --prompt "def main"

RUN is a run of bench.train, of which the newest whole checkpoint is taken, or one checkpoint's folder. Tokens are drawn
one by one, each from a whole forward pass with the run's own kernels; the same seed draws the same text.
"""

import sys
from pathlib import Path

from bench import cli
from bench.trainer import SAMPLE_TOKENS, TEMPERATURE, TOP_K


def parser() -> cli.Parser:
    p = cli.Parser({"--steps": "--tokens N"}, prog="python -m bench.sample", description=__doc__)
    p.add_argument("run", type=Path, metavar="RUN", help="a training run's folder, or a checkpoint's")
    p.add_argument("--prompt", metavar="TEXT", help="what the text begins with; default: the end of another")
    p.add_argument(
        "--tokens", type=cli.count, default=SAMPLE_TOKENS, metavar="N", help=f"of a text, default {SAMPLE_TOKENS}"
    )
    p.add_argument("--samples", type=cli.count, default=1, metavar="N", help="texts, default 1")
    p.add_argument("--temperature", type=cli.from_zero, default=TEMPERATURE, help=f"default {TEMPERATURE:g}; 0: greedy")
    p.add_argument("--top-k", type=cli.whole_from_zero, default=TOP_K, metavar="K", help=f"default {TOP_K}; 0: all")
    p.add_argument("--seed", type=cli.seed, default=0, help="default 0")
    p.add_argument("--kernels", metavar="LIST", help="as of bench.e2e; default: the run's own")
    p.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    p.add_argument("--threads", type=cli.cores, help="CPU threads (default: all usable cores)")
    p.add_argument("--vocab", type=Path, metavar="FILE", help="the tokenizer, where the run does not know it")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from bench.trainer import sampling

    return sampling.command(args)


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]))
