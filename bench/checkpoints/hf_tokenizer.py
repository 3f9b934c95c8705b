"""The files of a tokenizer in a Hugging Face folder, made of one of ours, for AutoTokenizer.from_pretrained.

tokenizer.json is written by the library that reads it. Of GPT-2's kind vocab.json and merges.txt stand beside it, for
older versions. Ranks do not say what was merged: that is found again by merging each token's bytes until two parts are
left, as training did (Sennrich et al. 2016).
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from bench.text.scored import BEGIN, BYTE, END, FIRST_BYTE, NEVER, Scored, of_bytes, of_pieces
from bench.text.tokenizer import bytes_of_characters
from bench.text.vocabularies import Codec, Fast, Ranked
from reference.models.model import Model

END_OF_TEXT = "<|endoftext|>"
SPACE = "▁"  # sentencepiece's sign for one
SPECIAL = ("<unk>", "<s>", "</s>")  # ids 0, 1, 2 of Llama's


def files(codec: Codec | None, model: Model) -> dict[str, bytes]:
    """{name: content}; empty where there is no tokenizer, or none that can be said there."""
    if isinstance(codec, Ranked) and codec.begin:  # Llama's tokens of single bytes
        codec = of_bytes(model.v)
    if isinstance(codec, Ranked) and codec.end is not None:
        return _gpt2(codec, codec.end, model)
    if isinstance(codec, Scored):
        return _llama(codec, model)
    return {}


# --- GPT-2's kind ---


def _gpt2(codec: Ranked, end: int, model: Model) -> dict[str, bytes]:
    ranks = codec.decoder.ranks()
    character = {byte: c for c, byte in bytes_of_characters().items()}

    def shown(token: bytes) -> str:
        return "".join(character[byte] for byte in token)

    merges = [(shown(a), shown(b)) for a, b in merges_of(ranks)]
    vocabulary = {shown(token): rank for token, rank in ranks.items()}
    inner = tokenizers.Tokenizer(BPE(vocab=vocabulary | {END_OF_TEXT: end}, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    said = dict(tokenizer_class="GPT2Tokenizer", add_prefix_space=False, model_max_length=model.max_t)
    said |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    return {
        "tokenizer.json": inner.to_str(pretty=True).encode(),
        "tokenizer_config.json": _json(said),
        "vocab.json": json.dumps(vocabulary | {END_OF_TEXT: end}, ensure_ascii=False).encode(),
        "merges.txt": "".join(["#version: 0.2\n", *(f"{a} {b}\n" for a, b in merges)]).encode(),
    }


def merges_of(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The two parts that each token was made of, in the order of ranks; a token that two of lower rank never make, as
    one that was added by hand, has none."""
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            of = [ranks.get(a + b, rank) for a, b in itertools.pairwise(parts)]
            if (best := min(of)) >= rank:
                break
            at = of.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]


# --- Llama's kind ---


def _llama(codec: Scored, model: Model) -> dict[str, bytes]:
    spaces = b" " in codec.ids  # else a space is a byte, and none goes before a text
    try:
        shown = [piece.decode().replace(" ", SPACE) if spaces else piece.decode() for piece in codec.pieces]
    except UnicodeDecodeError:
        return {}
    shown[: len(SPECIAL)] = SPECIAL
    vocabulary = {piece: i for i, piece in enumerate(shown)}
    if len(vocabulary) < len(shown):
        return {}
    pairs = [(a, b) for *_, a, b in sorted(_joins(codec, shown, vocabulary))]
    bpe = BPE(vocab=vocabulary, merges=pairs, unk_token=SPECIAL[0], byte_fallback=True, fuse_unk=True)
    inner = tokenizers.Tokenizer(bpe)
    bytes_to_text: list[decoders.Decoder] = [decoders.ByteFallback(), decoders.Fuse()]
    if spaces:
        inner.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
        bytes_to_text = [decoders.Replace(SPACE, " "), *bytes_to_text, decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(bytes_to_text)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BEGIN)]
    )
    inner.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    said = dict(tokenizer_class="PreTrainedTokenizerFast", model_max_length=model.max_t)
    said |= dict(unk_token=SPECIAL[0], bos_token=SPECIAL[BEGIN], eos_token=SPECIAL[END])
    return {"tokenizer.json": inner.to_str(pretty=True).encode(), "tokenizer_config.json": _json(said)}


def _joins(codec: Scored, shown: list[str], vocabulary: dict[str, int]) -> Iterator[tuple[float, int, str, str]]:
    """Every two pieces that make a third, with what they are sorted by: the best score first."""
    for i, piece in enumerate(shown):
        if i < len(SPECIAL) or BYTE.fullmatch(codec.pieces[i]) or codec.scores[i] <= NEVER:
            continue
        for at in range(1, len(piece)):
            a, b = piece[:at], piece[at:]
            if a in vocabulary and b in vocabulary:
                yield -codec.scores[i], i, a, b


def pieces_of(codec: Fast, v: int) -> Scored | None:
    """llama2.c's pieces of a tokenizer.json of Llama's kind, for a model of `v` tokens: what is merged first has the
    best score. None for another kind, which pieces with scores cannot say: no bytes, spaces treated otherwise, or
    a piece whose ways to be merged have others between them."""
    said = json.loads(codec.content)
    model, added = said["model"], {entry["content"]: entry["id"] for entry in said.get("added_tokens") or ()}
    if model.get("type") != "BPE" or not model.get("byte_fallback") or codec.begin != (BEGIN,):
        return None
    vocabulary = {**model["vocab"], **added}
    shown: list[str | None] = [None] * v
    for piece, i in vocabulary.items():
        shown[i] = piece
    in_bytes = [f"<0x{b:02X}>" for b in range(256)]
    if shown[: FIRST_BYTE + 256] != [*SPECIAL, *in_bytes] or (SPACE in vocabulary) != _puts_a_space_first(said):
        return None
    ranks: dict[str, list[int]] = {}
    for rank, pair in enumerate(model["merges"]):
        ranks.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), []).append(rank)
    if any(found[-1] - found[0] >= len(found) for found in ranks.values()):
        return None
    pieces, scores = list(of_bytes(FIRST_BYTE + 256).pieces), [0.0] * (FIRST_BYTE + 256)
    for i, piece in enumerate(shown[len(pieces) :], len(pieces)):
        pieces.append(b"<unused%d>" % i if piece is None else piece.replace(SPACE, " ").encode())
        merged = -1.0 - ranks[piece][0] if piece in ranks else None
        letter = piece is not None and len(piece) == 1
        scores.append(merged if merged is not None else -1.0 - len(model["merges"]) if letter else 2 * NEVER)
    return of_pieces(codec.name, pieces, scores)


def _puts_a_space_first(said: Mapping[str, Any]) -> bool:
    """Whether spaces are the sign for one, and one stands before every text."""
    first = [said.get("normalizer"), *((said.get("normalizer") or {}).get("normalizers") or ()), said["pre_tokenizer"]]
    kinds = {step["type"]: step for step in first if step}
    metaspace = kinds.get("Metaspace", {})
    return "Prepend" in kinds or metaspace.get("prepend_scheme", "never") in ("first", "always")


def _json(said: dict) -> bytes:
    return (json.dumps(said, indent=2) + "\n").encode()
