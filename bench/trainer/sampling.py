"""`python -m bench.sample`: texts of what a run has trained so far."""

import argparse
import os
from pathlib import Path

import torch

from bench import cli
from bench.checkpoints.foreign import checkpoint_in, read_any
from bench.cli import CannotGoOn
from bench.machine import facts
from bench.machine.devices import check_device
from bench.models.chosen import FILE
from bench.text.corpus import TOKENIZER, decoder_beside, tokenizer
from bench.text.decoding import Decoder, decoder_of, read_tokenizer
from bench.trainer import build
from bench.trainer.plan import race_of
from bench.trainer.sample import Draw, Texts, sample

KERNELS = "torch.eager"  # of a checkpoint without a run around it: they run everywhere


def command(args: argparse.Namespace) -> int:
    """One text for each of --samples. Raises CannotGoOn where there is no checkpoint, or a prompt and no tokenizer."""
    check_device(args.device)
    threads = args.threads or facts.usable_cores()
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    path = checkpoint_in(args.run, "which bench.train leaves; of other weights bench.generate writes texts")
    model, state = read_any(path)
    texts = Texts(decoder(path, args.vocab, model.tokenizer), model.tokenizer)
    if args.prompt and texts.decoder is None:
        raise CannotGoOn(f"--prompt: {path} does not say which tokenizer it was trained with; name it with --vocab")
    prompt = texts.prompt(args.prompt, model.v)
    race = race_of(
        model,
        kernels=args.kernels or kernels(path),
        B=1,
        T=min(model.max_t, len(prompt) + args.tokens),
        dtype=state.dtype,
        device=args.device,
        threads=threads,
        graph=False,
    )
    choice, note = build.choose_kernels(race)
    step = build.build(race, choice)
    step.load(dict(state.weights))
    cli.say(f"{model.name} after {state.step:,} steps; {texts.name}" + (f"; {note}" if note else ""))
    for number in range(args.samples):
        ids = sample(step, prompt, args.tokens, Draw(args.temperature, args.top_k), args.seed + number)
        print(texts.text([*prompt, *ids] if args.prompt else ids), flush=True)
        if number + 1 < args.samples:
            print("---")
    return cli.OK


def decoder(checkpoint: Path, vocab: Path | None, kind: str) -> Decoder | None:
    """Of --vocab; else of the file that a run leaves beside its checkpoints."""
    if vocab:
        return decoder_of(tokenizer(vocab))
    beside = checkpoint.parent / TOKENIZER
    return read_tokenizer(beside) if beside.exists() else decoder_beside(checkpoint, kind)


def kernels(checkpoint: Path) -> str:
    """`--kernels` of the run that a checkpoint belongs to."""
    file = checkpoint.parent.parent / FILE
    return str(file.absolute()) if file.exists() else KERNELS
