"""Text to tokens to llm.c's .bin shards, and the shards back as arrays.

    python -m bench.data FILE|DIR --out DIR      # train.bin, val.bin and about.json
    python -m bench.data                         # the default data set: the Python standard library's source
    python -m bench.data --hellaswag hellaswag_val.jsonl --out DIR      # hellaswag.bin: questions with four endings

A shard is 256 little-endian int32 (magic 20240520, version 1, number of tokens, zeros) and then one uint16 a token.
nanoGPT's files (uint16 and no header) are read too. The first 90 % of the characters are for training, the rest for
validation. Documents (files) have <|endoftext|> between them and none before the first, so a single text is its own
tokens and nothing else. Nothing here uses the network.

`bench.train --data` takes DIR (it trains on the shards named train and validates on those named val), a .bin file, a
glob of them ('DIR/*_train_*.bin', quoted), or text, which it makes shards of by itself. tokenizer.bin, in llm.c's
layout, is what samples are decoded with; --vocab takes it too, which questions for a model need: --hellaswag's must be
encoded as what it was trained on was (its JSON lines: github.com/rowanz/hellaswag; llm.c's evaluation format).
"""

import argparse
from pathlib import Path

from bench import cli
from bench.text import VAL_FRACTION


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.data", description=__doc__)
    p.add_argument("source", nargs="?", type=Path, metavar="FILE|DIR", help="text; default: the standard library")
    p.add_argument("--out", type=Path, metavar="DIR", help="where the shards go; default: the cache")
    p.add_argument(
        "--vocab",
        type=Path,
        metavar="FILE",
        help="a .tiktoken rank file, llm.c's or llama2.c's tokenizer .bin, or the word bytes: Llama's byte tokens",
    )
    p.add_argument("--hellaswag", type=Path, metavar="JSONL", help="write HellaSwag's questions to DIR/hellaswag.bin")
    p.add_argument("--val-fraction", type=_fraction, default=VAL_FRACTION, metavar="F", help="default %(default)s")
    p.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return p


def _fraction(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a fraction between 0 and 1")
    return value


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.hellaswag:
        return questions(args)
    from bench.text.corpus import encode

    folder, about = encode(args.source, args.out, args.vocab, args.val_fraction)
    if args.json:
        cli.print_json(about | {"folder": str(folder)})
        return cli.OK
    held = cli.several(about["documents"], "document"), cli.several(about["characters"], "character")
    print(f"text       {about['source']}: {', '.join(held)}")
    if about["skipped_files"]:
        print(f"left out   {cli.several(about['skipped_files'], 'file')}: no UTF-8 text")
    print(f"tokenizer  {about['tokenizer']}")
    print(f"train      {cli.several(about['train_tokens'], 'token')}  {folder / 'train.bin'}")
    print(f"val        {cli.several(about['val_tokens'], 'token')}  {folder / 'val.bin'}")
    return cli.OK


def questions(args: argparse.Namespace) -> int:
    if args.out is None or args.source is not None:
        raise cli.CannotGoOn("--hellaswag takes --out DIR, and no other text beside it", cli.USAGE)
    from bench.text.corpus import tokenizer
    from bench.text.evaluation import convert

    file = args.out / "hellaswag.bin"
    about = convert(args.hellaswag, lambda: tokenizer(args.vocab), file)
    if args.json:
        cli.print_json(about | {"file": str(file)})
        return cli.OK
    print(f"tokenizer  {about['tokenizer']}")
    print(f"questions  {about['examples']:,}, the longest of {about['longest_tokens']:,} tokens  {file}")
    return cli.OK


if __name__ == "__main__":
    cli.run(main)
