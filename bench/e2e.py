"""Train a model with registry variants and with PyTorch, side by side: is it right, how fast, where does the time go?

First the parity gate: loss and gradient norm of every step must stay in the band that PyTorch's own runs span (see
bench/training/gate.py); where they do not, no MFU is printed and the exit code is 2. Steps of all contestants take
turns in random order, each contestant in a process of its own. Memory is planned once. PyTorch's fp32 run, which the
gate judges by, takes as many steps as the contestants do, since every timed step is judged; it goes a turn ahead of
them, so that what is cut short has judged what it has timed. After each turn the records are on disk.

--kernels is a comma list: `fastest` (the default: the quickest variant here for each layer, shape and pass, measured
now or remembered), a backend (`cpu`), a variant (`cpu.naive`), and overrides `layer=…` or `layer/shape=…`, for example
`fastest,attention=cpu.naive,matmul/qkv=torch.eager`. A folder in the list adds the variants in it. A FILE.json in it is
the kernels.json of an earlier run: its kernels are taken without a race, but for those whose source has changed.

--baseline names PyTorch's steps: `eager`, as it comes; `compile`, as a careful user writes it (on a GPU: autocast,
max-autotune, the fastest SDPA backend pinned); `compile-plain`, torch.compile(model) and nothing else; `compile-bf16`,
`compile` with bf16 parameters and fp32 masters, as our step keeps them.

On a GPU our whole step is two CUDA graphs, with a look at the gradients' norm between them, unless a kernel cannot be
captured (then the page says which) or --no-graph; without --batch, B is halved until everything fits. Steps are timed
by the GPU's events.

--minutes: ours and the first baseline start (on a GPU compile-plain, else compile), the others join after two timed
turns each while there is time; a compilation that runs over its limit is given up, and its row says so.

MFU is useful FLOPs a second over what the machine can do: the matmul rate measured by bench.machine.ceilings, and the
datasheet's where it is known. PaLM's convention counts 6 (P - wpe) + 12 L C T a token (of Llama 6 P,
without an embedding that is not the head too), llm.c's 6 P + 6 L C T.
"""

import sys
import time
from pathlib import Path

from bench import cli
from bench.training import (
    BASELINES,
    COMPILE_LIMIT_S,
    CPU_B,
    CPU_BASELINES,
    CPU_T,
    GPU_B,
    GPU_BASELINES,
    GPU_STEPS,
    GPU_T,
    SIMULATED_STEPS,
    STEPS,
    WARM_UP,
)


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.e2e", description=__doc__)
    p.add_argument("model", help="gpt2-tiny, -124m, -350m, -774m or -1558m; llama2-tiny, -15m, -42m, -110m or -7b")
    what = p.add_argument_group("what to run")
    what.add_argument("--kernels", default="fastest", metavar="LIST", help="variants of our step (see above)")
    what.add_argument(
        "--baseline",
        metavar="LIST",
        help=f"of {', '.join(BASELINES)}, or none; default {CPU_BASELINES}, on a GPU {GPU_BASELINES}",
    )
    what.add_argument(
        "--swap",
        action="append",
        default=[],
        metavar="LAYER=VARIANT",
        help="also run our step with this one change: predicted against measured difference (may be repeated)",
    )
    what.add_argument(
        "--batch",
        type=cli.count,
        metavar="B",
        help=f"sequences a micro-batch; default {CPU_B}, on a GPU what fits: at most "
        + ", ".join(f"{b} for {name}" for name, b in GPU_B.items()),
    )
    what.add_argument(
        "--seq", type=cli.count, metavar="T", help=f"tokens a sequence; default {CPU_T}, on a GPU {GPU_T}"
    )
    what.add_argument("--accumulation", type=cli.count, default=1, metavar="N", help="micro-batches a step, default 1")
    what.add_argument("--dtype", choices=("fp32", "bf16"), help="default fp32, on a GPU bf16")
    what.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    what.add_argument(
        "--recompute",
        metavar="LIST",
        help="of gelu, layernorm (Llama: swiglu, rmsnorm): outputs that backward computes again, and no block keeps",
    )
    what.add_argument("--no-graph", action="store_true", help="on a GPU, launch our kernels one by one")
    what.add_argument("--data", metavar="PATH", help="text, .bin shards or a folder; default Python's standard library")
    what.add_argument(
        "--simulate",
        action="store_true",
        help="run GPU kernels in the simulator: the gate and the losses, no times (for gpt2-tiny; minutes)",
    )
    what.add_argument("--lr", type=cli.above_zero, default=3e-4, help="learning rate, constant; default 3e-4")
    how = p.add_argument_group("how to measure")
    how.add_argument(
        "--steps",
        type=cli.count,
        metavar="N",
        help=f"timed steps after {WARM_UP}, default {STEPS} ({GPU_STEPS} on a GPU, {SIMULATED_STEPS} with --simulate)",
    )
    how.add_argument("--seed", type=cli.seed, default=0, help="of parameters and batches, default 0")
    how.add_argument("--threads", type=cli.cores, help="CPU threads of every contestant (default: all usable cores)")
    how.add_argument(
        "--time-limit", type=cli.above_zero, default=600.0, metavar="S", help="for one step, default 600 s"
    )
    how.add_argument(
        "--minutes", type=cli.above_zero, metavar="M", help="end within so many, with what was measured by then"
    )
    how.add_argument(
        "--compile-limit",
        type=cli.above_zero,
        default=COMPILE_LIMIT_S,
        metavar="S",
        help=f"for each baseline to compile, default {COMPILE_LIMIT_S:g} s",
    )
    how.add_argument("--remeasure", action="store_true", help="measure candidates again, whatever is remembered")
    out = p.add_argument_group("results")
    out.add_argument("--out", type=Path, help="folder of this run (default: a new one under runs/)")
    out.add_argument(
        "--profile",
        type=Path,
        metavar="FOLDER",
        help="afterwards, a trace of one step of ours and of each baseline, and ranges.csv",
    )
    out.add_argument("--json", action="store_true", help="the last line of stdout is one JSON document")
    return p


def main(argv: list[str] | None = None) -> int:
    begin = time.monotonic()
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    from bench.training import plan, session

    return session.Session(plan.plan_of(**vars(args), argv=argv), begin).run()


if __name__ == "__main__":
    cli.run(main)
