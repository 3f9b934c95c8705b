"""Write text with a model, token by token, with the registry's variants; and say how fast that is.

    python -m bench.generate llama2-15m --prompt "Once upon a time"       random weights, of --seed
    python -m bench.generate stories15M.bin --steps 200 --temperature 0.8 --top-p 0.9
    python -m bench.generate RUN --prompt "def main"                      what a run of bench.train has learnt
    python -m bench.generate llama2-110m --prompt-tokens 256 --ladder --baseline eager,compile,transformers

MODEL is a model's name, or a file or folder: llama2.c's model.bin (versions 0, 1, 2), llama.cpp's .gguf, a Hugging Face
folder, a .safetensors file, a run of bench.train or a checkpoint of it, llm.c's model. Files are never executed: no
pickle is read.

The prompt is read in one pass (prefill), then a step makes one token more for each sequence (decode), against a cache
of keys and values that is planned once. On a GPU a step is one CUDA graph. Draws are made from a given number, so the
same seed writes the same text.

--kernels is a comma list, as of bench.e2e: `fastest` (the default), a backend (`cpu`), a variant (`cpu.naive`), and
overrides `layer=…` or `layer/shape=…`: gemv/decode-qkv=cpu.simd. --quantise q8_0 keeps matrices in int8 with a scale
for each group of a row, and multiplies in int8; --ladder generates with fp32, bf16 and q8_0 in turn.

On a terminal the first text is shown as it is written, whole characters only; it is one that nobody times. Elsewhere
it stands at the end, or --stream shows it so too.

First ours is held to a plain network in fp64, over the tokens it drew itself: logits may be as far off as 4 times
PyTorch's own variants at the same calls are, else the exit code is 2. Then contestants generate turn about, each in a
process of its own, from prompts of the same length that are new in each round.

MFU: FLOPs of a prefill's products / its time / the matmul rate measured here. MBU: bytes of weights and cache that a
step must read / its time / the read bandwidth measured here (bench.machine.ceilings).
"""

import sys
from pathlib import Path

from bench import cli
from bench.generation import BASELINES, QUANTISE, ROUNDS, SIMULATED_STEPS, STEPS, TIME_LIMIT_S

INSTEAD = {"--tokens": "--steps N, and a prompt of ids --prompt-ids"}  # of bench.sample's


def parser() -> cli.Parser:
    p = cli.Parser(
        INSTEAD,
        prog="python -m bench.generate",
        description=__doc__,
    )
    p.add_argument("model", metavar="MODEL", help="a model's name, or a file or folder of weights")
    what = p.add_argument_group("what to write")
    what.add_argument("--prompt", metavar="TEXT", help="what the text begins with; default: the beginning of any")
    what.add_argument("--prompt-ids", metavar="IDS", help="the prompt as token ids: 1,42,7")
    what.add_argument("--prompt-tokens", type=cli.count, metavar="N", help="a prompt of N random tokens: to time with")
    what.add_argument("--vocab", type=Path, metavar="FILE", help="the tokenizer, where the file does not know it")
    what.add_argument(
        "--steps",
        type=cli.count,
        metavar="N",
        help=f"tokens, default {STEPS} where the context has room for them, {SIMULATED_STEPS} with --simulate",
    )
    what.add_argument("--batch", type=cli.count, default=1, metavar="N", help="sequences at once, default 1")
    what.add_argument("--temperature", type=cli.from_zero, default=0.0, help="default 0: the likeliest token")
    what.add_argument("--top-k", type=cli.whole_from_zero, default=0, metavar="K", help="of the K likeliest; 0: all")
    what.add_argument(
        "--top-p", type=cli.above_zero, default=1.0, metavar="P", help="of the likeliest that reach P together; 1: all"
    )
    what.add_argument("--seed", type=cli.seed, default=0, help="of draws, and of random weights; default 0")
    how = p.add_argument_group("with what")
    how.add_argument("--kernels", default="fastest", metavar="LIST", help="variants (see above)")
    how.add_argument("--dtype", choices=("fp32", "bf16"), help="default fp32, on a GPU bf16")
    how.add_argument("--quantise", choices=QUANTISE, help="matrices in int8, with a scale for each group of a row")
    how.add_argument("--group", type=cli.count, metavar="G", help="elements of a group, default 64")
    how.add_argument("--ladder", action="store_true", help="with fp32, bf16 and q8_0, one beside the other")
    how.add_argument("--baseline", default="none", metavar="LIST", help=f"of {', '.join(BASELINES)}, or none (default)")
    how.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    how.add_argument("--no-graph", action="store_true", help="on a GPU, launch kernels one by one")
    how.add_argument(
        "--simulate",
        action="store_true",
        help="run GPU kernels in the simulator: is the text right, and no times (for llama2-tiny; minutes)",
    )
    how.add_argument("--threads", type=cli.cores, help="CPU threads of every contestant (default: all usable cores)")
    measure = p.add_argument_group("how to measure")
    measure.add_argument("--rounds", type=cli.count, metavar="N", help=f"timed generations, default {ROUNDS}")
    measure.add_argument("--no-check", action="store_true", help="do not hold ours to a plain network first")
    measure.add_argument("--remeasure", action="store_true", help="measure candidates again, whatever is remembered")
    measure.add_argument(
        "--race-limit",
        type=cli.above_zero,
        metavar="S",
        help="seconds for measuring candidates; a call that is not reached has who is quickest at the nearest one",
    )
    measure.add_argument(
        "--time-limit", type=cli.above_zero, metavar="S", help=f"for one generation, default {TIME_LIMIT_S:g} s"
    )
    out = p.add_argument_group("results")
    out.add_argument("--out", type=Path, help="folder of this run (default: a new one under runs/)")
    out.add_argument(
        "--stream", action="store_true", help="show the text as it is written; on a terminal it is, but with --json"
    )
    out.add_argument("--json", action="store_true", help="the last line of stdout is one JSON document")
    return p


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    from bench.generation import plan, session

    return session.Session(plan.plan_of(**vars(args), argv=argv)).run()


if __name__ == "__main__":
    cli.run(main)
