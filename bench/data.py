"""Text to tokens to llm.c's .bin shards, and the shards back as arrays.

    python -m bench.data FILE|DIR --out DIR      # train.bin, val.bin and about.json
    python -m bench.data                         # the default data set: the Python standard library's source

A shard is 256 little-endian int32 (magic 20240520, version 1, number of tokens, zeros) and then one uint16 a token.
nanoGPT's files (uint16 and no header) are read too. The first 90 % of the characters are for training, the rest for
validation. Documents (files) have <|endoftext|> between them and none before the first, so a single text is its own
tokens and nothing else. Nothing here uses the network.
"""

import argparse
from pathlib import Path

from bench import cli
from bench.text import VAL_FRACTION


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.data", description=__doc__)
    p.add_argument("source", nargs="?", type=Path, metavar="FILE|DIR", help="text; default: the standard library")
    p.add_argument("--out", type=Path, metavar="DIR", help="where the shards go; default: the cache")
    p.add_argument("--vocab", type=Path, metavar="FILE", help="GPT-2's vocabulary as a .tiktoken rank file")
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


def main() -> int:
    args = parser().parse_args()
    from bench.text.corpus import encode

    folder, about = encode(args.source, args.out, args.vocab, args.val_fraction)
    if args.json:
        cli.print_json(about | {"folder": str(folder)})
        return cli.OK
    print(f"text       {about['source']}: {about['documents']:,} documents, {about['characters']:,} characters")
    if about["skipped_files"]:
        print(f"left out   {about['skipped_files']:,} files that are not UTF-8 text")
    print(f"tokenizer  {about['tokenizer']}")
    print(f"train      {about['train_tokens']:,} tokens  {folder / 'train.bin'}")
    print(f"val        {about['val_tokens']:,} tokens  {folder / 'val.bin'}")
    return cli.OK


if __name__ == "__main__":
    cli.run(main)
