"""Train a model with registry variants, for as long as it takes: it survives what ends it, and goes on bit for bit.

    python -m bench.train gpt2-tiny --steps 200 --out runs/tiny                     the standard library's source
    python -m bench.train gpt2-124m --data 'DIR/*_train_*.bin' --out RUN …          shards of tokens
    python -m bench.train --out RUN --resume                                        goes on, with the same options
    torchrun --nproc_per_node 2 -m bench.train gpt2-124m --out RUN …                on several processes

One line a step when piped, a progress display on a terminal. In RUN: train.jsonl (every event), train.csv (at the end),
env.json, kernels.json, checkpoints/, and TensorBoard's files where it is installed. docs/training.md says all of it.

Ctrl-C or SIGTERM ends the step under way, writes a checkpoint and ends with exit code 130; a second one ends at once
and harms nothing. A loss or norm that is not finite is reported with the call and tensor where it first appears, and
its update is left out; after --not-finite of them in a row the run ends with exit code 2.

MFU is useful FLOPs a second (PaLM's convention) over the matmul rate that bench.machine.ceilings measured here.
"""

import argparse
import os
import sys
from pathlib import Path

from bench import cli
from bench.checkpoints import KEEP_LAST
from bench.trainer import (
    FINAL_FRACTION,
    FSDP,
    LR,
    NOT_FINITE_IN_A_ROW,
    OPTIMIZERS,
    PARITY_EVERY,
    SAMPLE_TOKENS,
    SCHEDULES,
    TEMPERATURE,
    TOP_K,
    VAL_BATCHES,
    WINDOW,
)
from bench.training import BASELINES, CPU_B, CPU_T, GPU_T


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.train", description=__doc__)
    p.add_argument(
        "model", nargs="?", help="gpt2-tiny, -124m, -350m, -774m or -1558m; llama2-tiny, -15m, -42m, -110m or -7b"
    )
    p.add_argument("--out", type=Path, help="folder of this run (default: a new one under runs/)")
    p.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest whole checkpoint in --out, as the run was begun; where there is none, start",
    )
    _data(p.add_argument_group("data"))
    _step(p.add_argument_group("the step"))
    _optimizer(p.add_argument_group("schedule and optimizer"))
    _looks(p.add_argument_group("evaluation and samples"))
    _checkpoints(p.add_argument_group("checkpoints"))
    _beside(p.add_argument_group("judged by PyTorch, and beside it"))
    return p


def _data(g: argparse._ArgumentGroup) -> None:
    g.add_argument(
        "--data", metavar="DATA", help=".bin shards (a glob or folder), or text; default Python's standard library"
    )
    g.add_argument("--val", metavar="DATA", help="for validation; default: what belongs to --data")
    g.add_argument("--no-shuffle", action="store_true", help="take the windows of tokens in their order")
    g.add_argument("--data-threads", type=cli.count, default=1, metavar="N", help="that read ahead, default 1")


def _step(g: argparse._ArgumentGroup) -> None:
    g.add_argument(
        "--kernels", default="fastest", metavar="LIST", help="as of bench.e2e: fastest, cpu, layer=variant, …"
    )
    g.add_argument("--remeasure", action="store_true", help="race the candidates again, whatever is remembered")
    g.add_argument("--batch", type=cli.count, metavar="B", help=f"sequences a micro-batch; default {CPU_B}")
    g.add_argument("--seq", type=cli.count, metavar="T", help=f"tokens a sequence; default {CPU_T}, on a GPU {GPU_T}")
    g.add_argument(
        "--total-batch",
        type=cli.count,
        metavar="TOKENS",
        help="tokens a step, all ranks together; gradients are accumulated. Default: one micro-batch a rank",
    )
    g.add_argument("--dtype", choices=("fp32", "bf16"), help="default fp32, on a GPU bf16")
    g.add_argument("--no-masters", action="store_true", help="bf16 weights without fp32 masters, rounded at random")
    g.add_argument(
        "--recompute",
        metavar="LIST",
        help="of gelu, layernorm (Llama: swiglu, rmsnorm): outputs that backward computes again",
    )
    g.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    g.add_argument("--no-graph", action="store_true", help="on a GPU, launch kernels one by one")
    g.add_argument(
        "--threads", type=cli.cores, help="CPU threads (default: all usable cores, shared by the ranks here)"
    )
    g.add_argument("--seed", type=cli.seed, default=0, help="of parameters, the data's order, rounding and samples")


def _optimizer(g: argparse._ArgumentGroup) -> None:
    g.add_argument("--steps", type=cli.count, metavar="N", help="default: one epoch")
    g.add_argument("--epochs", type=cli.above_zero, metavar="E", help="instead of --steps")
    g.add_argument("--lr", type=cli.above_zero, default=LR, help=f"at its highest, default {LR:g}")
    g.add_argument("--schedule", choices=SCHEDULES, default="cosine", help="default cosine")
    g.add_argument(
        "--warmup", type=cli.whole_from_zero, default=0, metavar="STEPS", help="a line from 0 to --lr, default 0"
    )
    g.add_argument(
        "--final-fraction",
        type=_share,
        default=FINAL_FRACTION,
        metavar="F",
        help=f"of --lr at the end, default {FINAL_FRACTION:g}",
    )
    g.add_argument("--weight-decay", type=cli.from_zero, metavar="X", help="of matrices; default the model's, 0.1")
    g.add_argument("--betas", type=_betas, metavar="B1,B2", help="AdamW's; default the model's, 0.9,0.95")
    g.add_argument("--eps", type=cli.above_zero, help="AdamW's; default the model's, 1e-8")
    g.add_argument("--clip", type=cli.from_zero, metavar="NORM", help="of all gradients; default 1, 0 does not clip")
    for name, what in (("loss", "loss"), ("norm", "gradient norm")):
        g.add_argument(
            f"--skip-{name}-z",
            type=cli.above_zero,
            metavar="Z",
            help=f"leave an update out whose {what} is more than Z standard deviations above its last {WINDOW}",
        )
    g.add_argument(
        "--not-finite",
        type=cli.count,
        default=NOT_FINITE_IN_A_ROW,
        metavar="K",
        help=f"end after so many losses or norms in a row that are not finite, default {NOT_FINITE_IN_A_ROW}",
    )
    g.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        default=OPTIMIZERS[0],
        help="with several ranks: its state on each, or spread over them",
    )


def _looks(g: argparse._ArgumentGroup) -> None:
    g.add_argument(
        "--val-every", type=cli.whole_from_zero, default=0, metavar="N", help="validation loss, also before and after"
    )
    g.add_argument(
        "--val-batches",
        type=cli.count,
        default=VAL_BATCHES,
        metavar="M",
        help=f"at most, of each rank, default {VAL_BATCHES}",
    )
    g.add_argument("--hellaswag", type=Path, metavar="FILE", help="an evaluation file (python -m bench.data makes one)")
    g.add_argument(
        "--hellaswag-every", type=cli.whole_from_zero, default=0, metavar="N", help="its accuracy, also at the end"
    )
    g.add_argument("--sample-every", type=cli.whole_from_zero, default=0, metavar="N", help="a text, also at the end")
    g.add_argument(
        "--sample-tokens", type=cli.count, default=SAMPLE_TOKENS, metavar="N", help=f"default {SAMPLE_TOKENS}"
    )
    g.add_argument(
        "--temperature", type=cli.from_zero, default=TEMPERATURE, help=f"default {TEMPERATURE:g}; 0: the likeliest"
    )
    g.add_argument(
        "--top-k", type=cli.whole_from_zero, default=TOP_K, metavar="K", help=f"default {TOP_K}; 0: all tokens"
    )
    g.add_argument("--prompt", metavar="TEXT", help="what samples begin with; default: the end of a text")


def _beside(g: argparse._ArgumentGroup) -> None:
    g.add_argument(
        "--no-spot-checks",
        action="store_true",
        help="judge no step: else the first, the last and some at random are held to PyTorch's, off the clock",
    )
    g.add_argument(
        "--baseline",
        choices=(*BASELINES, FSDP),
        metavar="NAME",
        help=f"PyTorch's training beside ours, as in bench.e2e: {', '.join(BASELINES)}; of several ranks {FSDP}",
    )
    g.add_argument(
        "--parity-every",
        type=cli.count,
        default=PARITY_EVERY,
        metavar="N",
        help=f"steps between looks whether ours stays in the band of PyTorch's own runs, default {PARITY_EVERY}",
    )


def _checkpoints(g: argparse._ArgumentGroup) -> None:
    g.add_argument(
        "--checkpoint-every", type=cli.whole_from_zero, default=0, metavar="N", help="also at the end; 0: only there"
    )
    g.add_argument("--keep-last", type=cli.count, default=KEEP_LAST, metavar="K", help=f"default {KEEP_LAST}")
    g.add_argument(
        "--keep-every", type=cli.whole_from_zero, default=0, metavar="M", help="keep those of every Mth step too"
    )
    g.add_argument(
        "--from",
        type=Path,
        metavar="WEIGHTS",
        help="to start from: a checkpoint or run of ours, a Hugging Face folder, llm.c's or llama2.c's .bin, nanoGPT's",
    )


def _share(text: str) -> float:
    value = cli.from_zero(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction from 0 to 1")
    return value


def _betas(text: str) -> tuple[float, float]:
    parts = text.split(",")
    values = tuple(_share(part) for part in parts)
    if len(values) != 2 or max(values) >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers below 1, as 0.9,0.95")
    return values[0], values[1]


def given(argv: list[str]) -> dict[str, object]:
    """The options that a command line names."""
    p = parser()
    for action in p._actions:
        action.default = argparse.SUPPRESS
    return vars(p.parse_args(argv))


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    if args.threads and "torch" not in sys.modules:  # OpenMP looks at it once, when it is loaded
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    from bench.trainer import loop

    return loop.command(vars(args), given(argv), argv)


if __name__ == "__main__":
    cli.run(main)
