"""Evaluation files as llm.c reads them, HellaSwag's lines turned into one, and answers from losses."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import HOME
from bench.text import evaluation, tokenizer
from bench.text.decoding import decoder_of, write_tokenizer
from bench.text.evaluation import Example, Tally, batches, from_jsonl, read, write
from bench.text.tokenizer import DataError, Tokenizer

EXAMPLES = [
    Example((10, 11, 12), ((20,), (21, 22), (23, 24, 25), (26,)), 1),
    Example((13,), ((30, 31), (32,), (33,), (34, 35)), 3),
    Example((14, 15), ((40,), (41,), (42,), (43,)), 0),
]


@pytest.fixture
def letters() -> Tokenizer:
    return Tokenizer.of_ranks("a token a byte", {bytes([b]): b for b in range(256)})


# ---- files -----------------------------------------------------------------------------------------------------------


def c_program_s(path: Path) -> list[Example]:
    """The examples as a reader finds them that goes by the description of the format alone, field after field."""
    with path.open("rb") as file:
        header = struct.unpack("<256i", file.read(1024))
        assert header[:2] == (20240522, 1) and not any(header[4:])
        found, sizes = [], []
        for i in range(header[2]):
            start, size, index, label, completions = struct.unpack("<5H", file.read(10))
            assert (start, index, completions) == (65535, i, 4) and label < 4
            parts = []
            for _ in range(5):
                (n,) = struct.unpack("<H", file.read(2))
                parts.append(struct.unpack(f"<{n}H", file.read(2 * n)))
            assert size == 10 + sum(2 + 2 * len(part) for part in parts)
            sizes.append(size)
            found.append(Example(parts[0], tuple(parts[1:]), label))
        assert file.read() == b"" and header[3] == max(sizes)
    return found


def test_a_written_file_reads_back_and_has_llm_c_s_layout(tmp_path):
    write(tmp_path / "e.bin", EXAMPLES)
    assert read(tmp_path / "e.bin") == c_program_s(tmp_path / "e.bin") == EXAMPLES
    raw = (tmp_path / "e.bin").read_bytes()
    write(tmp_path / "again.bin", read(tmp_path / "e.bin"))
    assert (tmp_path / "again.bin").read_bytes() == raw


def words(*changes: tuple[int, int]):
    """A file with some of its uint16 changed; places count from the first example's."""

    def harm(raw: bytes) -> bytes:
        ids = np.frombuffer(raw, "<u2").copy()
        for at, value in changes:
            ids[512 + at] = value
        return ids.tobytes()

    return harm


DAMAGE = {
    "not there": (None, "no such file"),
    "empty": (lambda raw: b"", "not an evaluation file"),
    "another file": (lambda raw: struct.pack("<i", 20240520) + raw[4:], "not an evaluation file"),
    "version": (lambda raw: raw[:4] + struct.pack("<i", 2) + raw[8:], "version 2"),
    "no examples": (lambda raw: raw[:8] + struct.pack("<i", 0) + raw[12:], "no examples"),
    "odd": (lambda raw: raw[:-1], "odd length"),
    "cut off": (lambda raw: raw[:-2], "example 2: the file ends within it"),
    "cut off between": (lambda raw: raw[:8] + struct.pack("<i", 4) + raw[12:], "example 3: the file ends before it"),
    "longer": (lambda raw: raw + b"\0\0", "2 bytes follow"),
    "longest": (lambda raw: raw[:12] + struct.pack("<i", 9) + raw[16:], "at most 9 bytes; the longest has 40"),
    "start": (words((0, 5)), "example 0: begins with 5"),
    "number": (words((2, 1)), "example 0: begins with 65535, 40, 1"),
    "label": (words((3, 4)), "of which 4 is right"),
    "endings": (words((4, 3)), "3 endings"),
    "no context": (words((5, 0)), "part 0 of it should have 0 tokens"),
    "long context": (words((5, 60)), "part 0 of it should have 60 tokens, and there are 14"),
    "other parts": (words((9, 2)), "part 2 of it should have 21 tokens, and there are 7"),
    "too few bytes": (words((1, 10)), "its 10 bytes are not a context"),
    "nothing": (words((1, 0)), "its 0 bytes are not a context"),
    "big token": (words((6, 50257)), "token 50257, but the vocabulary has 50,257"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_named_with_the_way_out(tmp_path, kind):
    harm, says = DAMAGE[kind]
    path = tmp_path / "e.bin"
    if harm:
        write(path, EXAMPLES)
        path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(DataError, match=says) as caught:
        read(path)
    assert str(path) in str(caught.value) and "--hellaswag" in str(caught.value)


def test_what_the_format_has_no_room_for_is_refused(tmp_path):
    some = EXAMPLES[0]
    odd = [
        Example((), some.endings, 0),
        Example(some.context, some.endings[:3], 0),
        Example(some.context, (*some.endings[:3], ()), 0),
        Example(some.context, some.endings, 4),
        Example((1,) * 40000, some.endings, 0),
    ]
    for each in odd:
        with pytest.raises(DataError, match="example 1 does not fit"):
            write(tmp_path / "e.bin", [some, each])
    for number in (0, 65536):
        with pytest.raises(DataError, match="takes 1 to 65,535"):
            write(tmp_path / "e.bin", [some] * number)
    assert not (tmp_path / "e.bin").exists()


# ---- HellaSwag's lines -----------------------------------------------------------------------------------------------

LINES: list[dict[str, Any]] = [
    {
        "ind": 24,
        "activity_label": "Baking",
        "ctx_a": "She mixes it.",
        "ctx_b": "then she",
        "ctx": "She mixes it. then she",
        "split": "val",
        "label": 2,
        "endings": ["flies.", "sleeps…", "bakes it.", "sings."],
    },
    {"ctx": "He runs\u2028on. he", "endings": ["a", "b", "c", "d"], "label": "0"},
]


def jsonl(path: Path, lines: list) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines) + "\n", encoding="utf-8")
    return path


def test_hellaswag_s_lines(tmp_path, letters):
    found = from_jsonl(jsonl(tmp_path / "h.jsonl", LINES), letters)
    texts = [[bytes(part).decode() for part in (e.context, *e.endings)] for e in found]
    assert texts == [[line["ctx"], *(" " + ending for ending in line["endings"])] for line in LINES]
    assert [e.label for e in found] == [2, 0]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "3",
        '"ctx"',
        json.dumps({k: v for k, v in LINES[0].items() if k != "label"}),
        json.dumps(LINES[0] | {"label": ""}),
        json.dumps(LINES[0] | {"label": 4}),
        json.dumps(LINES[0] | {"label": 1.5}),
        json.dumps(LINES[0] | {"label": True}),
        json.dumps(LINES[0] | {"ctx": ""}),
        json.dumps(LINES[0] | {"endings": ["a", "b", "c"]}),
        json.dumps(LINES[0] | {"endings": ["a", "b", "c", None]}),
        json.dumps(LINES[0] | {"endings": "abcd"}),
    ],
)
def test_a_line_that_is_no_example_is_named(tmp_path, letters, line):
    path = tmp_path / "h.jsonl"
    path.write_text(json.dumps(LINES[0]) + "\n\n" + line + "\n")
    with pytest.raises(DataError, match=rf"{path.name}:3: not an example of HellaSwag"):
        from_jsonl(path, letters)


def test_files_that_hold_no_lines_are_named(tmp_path, letters):
    for content, says in ((None, "no such file"), (b"\n", "no examples"), (b"\xff\xfe{", "not UTF-8")):
        path = tmp_path / "h.jsonl"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=says):
            from_jsonl(path, letters)
        with pytest.raises(DataError, match=says):  # before a tokenizer is trained for it
            evaluation.convert(path, lambda: pytest.fail("asked for a tokenizer"), tmp_path / "out.bin")


def test_the_command_writes_the_file_and_what_it_is(tmp_path, letters):
    """Encoded with the tokenizer that lies beside the shards, in llm.c's layout."""
    write_tokenizer(tmp_path / "tokenizer.bin", decoder_of(letters))
    source = jsonl(tmp_path / "hellaswag_val.jsonl", LINES)
    line = [sys.executable, "-m", "bench.data", "--hellaswag", source, "--out", tmp_path / "out", "--json"]
    command = [*line, "--vocab", tmp_path / "tokenizer.bin"]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    file = tmp_path / "out" / "hellaswag.bin"
    assert said["file"] == str(file) and said["examples"] == 2 and said["longest_tokens"] == 32
    assert read(file) == c_program_s(file) == from_jsonl(source, letters)
    about = json.loads((tmp_path / "out" / "hellaswag.json").read_text())
    assert about["tokenizer_sha256"] == letters.fingerprint() and str(tmp_path) not in json.dumps(about)
    wrong = subprocess.run([*line[:5], "--json"], cwd=HOME, capture_output=True, text=True)
    assert wrong.returncode == 64 and "--hellaswag takes --out DIR" in wrong.stderr


def test_questions_in_another_tokenizer_s_ids_are_refused(tmp_path, letters):
    file = tmp_path / "hellaswag.bin"
    evaluation.convert(jsonl(tmp_path / "h.jsonl", LINES), lambda: letters, file)
    evaluation.need_tokenizer(file, letters.fingerprint())
    with pytest.raises(DataError, match="encoded with another tokenizer than the data"):
        evaluation.need_tokenizer(file, "another")
    for content in ("{", "[]", "{}"):
        file.with_suffix(".json").write_text(content)
        evaluation.need_tokenizer(file, "another")
    file.with_suffix(".json").unlink()
    evaluation.need_tokenizer(file, "another")


# ---- answers ---------------------------------------------------------------------------------------------------------


def likes(batch: evaluation.Asked, liked: set[int]) -> np.ndarray:
    """Losses of a model to which some tokens are likely."""
    return np.where(np.isin(batch.y, list(liked)), 0.5, 3.0)


def told(examples, losses, B=8, T=8, rank=0, ranks=1) -> Tally:
    tally = Tally(examples)
    for batch in batches(examples, B, T, rank, ranks):
        tally.add(batch, losses(batch))
    return tally


def test_rows_are_a_context_and_an_ending_shifted_by_one():
    (first,) = batches(EXAMPLES[:1], 4, 6)
    assert first.x.dtype == first.y.dtype == np.int64 and first.rows == ((0, 0), (0, 1), (0, 2), (0, 3))
    assert first.x[2].tolist() == [10, 11, 12, 23, 24, 0] and first.y[2].tolist() == [11, 12, 23, 24, 25, 0]
    assert first.mask[2].tolist() == [False, False, True, True, True, False]
    assert [first.y[b][first.mask[b]].tolist() for b in range(4)] == [list(e) for e in EXAMPLES[0].endings]


@pytest.mark.parametrize("B", [1, 3, 4, 5, 8, 50])
def test_any_batch_size_asks_all_of_every_example(B):
    found = list(batches(EXAMPLES, B, 6))
    assert [row for batch in found for row in batch.rows] == [(n, e) for n in range(3) for e in range(4)]
    assert all(batch.x.shape == (B, 6) and not batch.mask[len(batch.rows) :].any() for batch in found)
    tally = told(EXAMPLES, lambda batch: likes(batch, {21, 22, 34, 35, 40}), B)
    assert tally.right == tally.asked == len(EXAMPLES)


def test_the_mean_decides_and_not_the_sum():
    """Two tokens of loss 1.0 each are likelier, by their mean, than one of 1.5."""
    losses = {21: 1.0, 22: 1.0, 20: 1.5}
    tally = told(EXAMPLES[:1], lambda batch: np.vectorize(lambda token: losses.get(token, 9.0))(batch.y))
    assert (tally.right, tally.asked) == (1, 1)


def test_losses_outside_the_ending_do_not_count():
    def losses(batch):
        return np.where(batch.mask, likes(batch, {21, 22}), np.nan)

    assert told(EXAMPLES[:1], losses).right == 1


def test_wrong_answers_ties_and_no_numbers():
    assert told(EXAMPLES, lambda batch: likes(batch, {20, 30, 31, 43})).right == 0
    same = told(EXAMPLES, lambda batch: np.ones(batch.y.shape))
    assert (same.right, same.asked) == (1, 3), "the first of equals: right for the one whose label is 0"
    broken = told(EXAMPLES, lambda batch: np.full(batch.y.shape, np.nan))
    assert (broken.right, broken.asked) == (0, 3)


def test_an_example_that_was_asked_in_part_does_not_count():
    tally = Tally(EXAMPLES)
    for batch, _ in zip(batches(EXAMPLES, 3, 6), range(2), strict=False):
        tally.add(batch, likes(batch, {21, 22}))
    assert (tally.right, tally.asked) == (1, 1)


def test_ranks_ask_each_example_once_and_have_as_many_batches():
    parts = [list(batches(EXAMPLES, 3, 6, rank, 2)) for rank in range(2)]
    assert len({len(part) for part in parts}) == 1
    rows = [row for part in parts for batch in part for row in batch.rows]
    assert sorted(rows) == [(n, e) for n in range(3) for e in range(4)]
    tallies = [told(EXAMPLES, lambda batch: likes(batch, {21, 22, 40}), 3, 6, rank, 2) for rank in range(2)]
    assert [(t.right, t.asked) for t in tallies] == [(2, 2), (0, 1)]


def test_what_is_too_long_loses_its_beginning():
    (batch,) = batches(EXAMPLES[:1], 4, 2)
    assert batch.x[2].tolist() == [23, 24] and batch.y[2].tolist() == [24, 25] and batch.mask[2].all()
    assert batch.x[0].tolist() == [11, 12] and batch.y[0].tolist() == [12, 20]
    assert batch.mask[0].tolist() == [False, True]


def test_the_vocabulary_bounds_what_is_read(tmp_path):
    write(tmp_path / "e.bin", EXAMPLES)
    assert read(tmp_path / "e.bin", 44) == EXAMPLES
    with pytest.raises(DataError, match="token 43, but the vocabulary has 43"):
        read(tmp_path / "e.bin", 43)
    assert tokenizer.VOCABULARY == 50257
