"""python -m bench.export RUN --format FORMAT --out FILE: a run's records, or what it trained, for other tools.

pytest-benchmark         JSON for `pytest-benchmark compare before.json after.json` and its histograms
nvbench                  JSON for `nvbench-compare-robust before.json after.json` (of cuda-bench[compare]), with the
                         samples beside it in FILE-bin/. That tool knows one clock, the GPU's: what is under its name
                         here is the clock that the run ranked by, and each row says which
github-action-benchmark  JSON for the action's tool `customSmallerIsBetter`, in milliseconds
bmf                      Bencher Metric Format, latency in nanoseconds
parquet, csv             a table, one row a case; parquet also has the raw samples (needs pyarrow)

Of a training run, or of one checkpoint of it, the newest weights for other programs; also of a file or folder that one
of them wrote (docs/checkpoints.md):

hf                       a folder for Hugging Face's GPT2LMHeadModel or LlamaForCausalLM.from_pretrained
llama2c                  Llama's model.bin for llama2.c, or with --out FOLDER that and its tokenizer
llmc                     a folder that llm.c's -y 1 goes on from, or with --out FILE.bin its model alone
gguf                     Llama's .gguf for llama.cpp, with its tokenizer where that has Llama's form
nanogpt                  a .safetensors file with nanoGPT's names

RUN is a run's folder, or one with several. What was not right has no time anywhere: it is left out, skipped with its
reason (nvbench), or a row without times (parquet, csv).
"""

import sys
from pathlib import Path

from bench import cli
from bench.checkpoints import EXPORTS, GGUF_KINDS, GROUP
from bench.records import FORMATS


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.export", description=__doc__)
    p.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or a folder of such")
    p.add_argument("--format", required=True, choices=(*FORMATS, *EXPORTS), metavar="FORMAT", help="see above")
    p.add_argument("--out", required=True, type=Path, metavar="FILE", help="file, or folder, to write")
    p.add_argument(
        "--vocab", type=Path, metavar="FILE", help="of hf, llama2c, gguf: the tokenizer, where none lies there"
    )
    g = p.add_argument_group("llama2c")
    g.add_argument("--version", type=int, choices=(0, 1, 2), help="0 (default) for run.c, 1, or 2: int8, for runq.c")
    g.add_argument(
        "--group",
        type=cli.count,
        metavar="G",
        help="of version 2, values a scale; halved until rows divide. Default 64",
    )
    g = p.add_argument_group("gguf")
    g.add_argument("--dtype", choices=GGUF_KINDS, help="what matrices are kept in; default: the weights' own")
    return p


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if args.version is not None and args.format != "llama2c":
        p.error("--version is of --format llama2c")
    if args.group is not None and args.version != 2:
        p.error("--group is of --format llama2c --version 2")
    if args.vocab is not None and args.format not in ("hf", "llama2c", "gguf"):
        p.error("--vocab is of --format hf, llama2c and gguf")
    if args.dtype is not None and args.format != "gguf":
        p.error("--dtype is of --format gguf")
    if args.format in EXPORTS:
        from bench.checkpoints import foreign

        more = args.version or 0, args.group or GROUP, args.vocab, args.dtype
        print(foreign.export(args.run, args.format, args.out, *more))
        return cli.OK
    from bench.records import formats

    print(formats.export(args.run, args.format, args.out))
    return cli.OK


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]))
