"""Epochs: every window once, whoever reads it and however it is cut; at any step; and shards that fail meanwhile."""

import itertools
import os
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bench.text import epochs, shards
from bench.text.epochs import Ahead, Epochs, find_shards, find_validation, in_order, permuted
from bench.text.tokenizer import DataError

LENGTHS = (97, 5, 64, 131, 1, 66)  # odd ones, one that is whole windows and the token after, two without any window
T = 5
WINDOWS = sum(max(n - 1, 0) // T for n in LENGTHS)


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """Shards in which no token occurs twice, so that a window says where it is from; one is nanoGPT's."""
    made, at = [], 0
    for i, n in enumerate(LENGTHS):
        path = tmp_path / f"some_train_{i:06}.bin"
        ids = np.arange(at, at + n, dtype="<u2")
        ids.tofile(path) if i == 2 else shards.write_tokens(path, ids)
        made.append(path)
        at += n
    return made


def targets(batches) -> list[int]:
    """All targets, and on the way that each window is T + 1 tokens one after the other."""
    found = []
    for x, y in batches:
        assert x.dtype == y.dtype == np.int64 and x.shape == y.shape == (x.shape[0], T)
        assert (y == x + 1).all() and (np.diff(x, axis=1) == 1).all()
        found += y.ravel().tolist()
    return found


def rows(batches) -> list[int]:
    return [int(row) for x, _ in batches for row in x[:, 0]]


# ---- each window once --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("B", "micro", "ranks"), [(1, 1, 1), (3, 2, 1), (2, 1, 3), (4, 3, 2), (50, 2, 2)])
def test_every_window_is_seen_once_an_epoch_over_all_ranks(files, B, micro, ranks, shuffle):
    everyone = [Epochs(files, B, T, micro, 7, rank, ranks, shuffle) for rank in range(ranks)]
    one = everyone[0]
    assert one.windows == WINDOWS and one.windows_per_step == B * micro * ranks
    steps = -(-3 * WINDOWS // one.windows_per_step)
    cut = [(step, m, rank) for step in range(steps) for m in range(micro) for rank in range(ranks)]
    read = {(step, rank): who.step(step) for rank, who in enumerate(everyone) for step in range(steps)}
    sequence = [row for step, m, rank in cut for row in rows([read[step, rank][m]])]
    shards_of = np.searchsorted(np.cumsum(LENGTHS), sequence, side="right")
    seen = []
    for epoch in range(3):
        here = slice(epoch * WINDOWS, (epoch + 1) * WINDOWS)
        starts, of = sequence[here], shards_of[here].tolist()
        assert {s: of.count(s) for s in set(of)} == {s: (n - 1) // T for s, n in enumerate(LENGTHS) if n > T}
        assert len([s for s, _ in itertools.groupby(of)]) == len(set(of)), "one shard after the other"
        told = Counter(token for start in starts for token in range(start + 1, start + T + 1))
        assert set(told.values()) == {1} and len(told) == WINDOWS * T, "each token is a target once"
        seen.append(starts)
    assert (seen[0] == seen[1] == seen[2] == sorted(seen[0])) is not shuffle
    if shuffle:
        assert len(set(map(tuple, seen))) == 3, "another order each epoch"


def test_shards_and_the_windows_in_each_come_in_another_order_each_epoch(files):
    data = Epochs(files, WINDOWS, T, 1, 0)
    whole = [np.array(rows(data.step(epoch))) for epoch in range(6)]
    turns = [tuple(dict.fromkeys(np.searchsorted(np.cumsum(LENGTHS), starts, side="right"))) for starts in whole]
    assert len(set(turns)) > 3
    one = [np.argsort(starts[starts < LENGTHS[0]], kind="stable").tolist() for starts in whole]
    assert len(set(map(tuple, one))) == 6, "whatever the token that an epoch begins at"


def test_no_token_is_left_out_for_good(files):
    """What does not fill a window is another end of a shard each epoch: all but first tokens are targets in time."""
    told: set[int] = set()
    data = Epochs(files, WINDOWS, T, 1, 0)
    for epoch in range(40):
        told |= set(targets(data.step(epoch)))
    starts = np.cumsum((0, *LENGTHS))[:-1]
    with_windows = [range(s + 1, s + n) for s, n in zip(starts, LENGTHS, strict=True) if n > T]
    assert told == set(itertools.chain(*with_windows))


def test_a_step_s_windows_do_not_depend_on_ranks_or_micro_batches(files):
    for number in (0, 3, 11):
        wanted = rows(Epochs(files, 12, T, 1, 3).step(number))
        for B, micro, ranks in ((12, 1, 1), (6, 2, 1), (6, 1, 2), (3, 2, 2), (1, 12, 1), (1, 4, 3), (2, 1, 6)):
            everyone = [Epochs(files, B, T, micro, 3, rank, ranks) for rank in range(ranks)]
            read = [epochs.step(number) for epochs in everyone]
            whole = everyone[-1].whole(number)
            in_turn = [read[rank][m] for m in range(micro) for rank in range(ranks)]
            assert len(whole) == len(in_turn)
            assert all(
                np.array_equal(a, b) for x, y in zip(whole, in_turn, strict=True) for a, b in zip(x, y, strict=True)
            )
            assert [row for m in range(micro) for each in read for row in rows([each[m]])] == wanted


def test_seeds_give_other_orders_and_the_same_one_the_same(files):
    first, again, other = (rows(Epochs(files, WINDOWS, T, 1, seed).step(0)) for seed in (1, 1, 2))
    assert first == again != other


def test_any_step_can_be_the_first(files):
    """Nothing is remembered from step to step: whoever asks backwards, or for one alone, gets the same."""
    whole = [rows(Epochs(files, 4, T, 2, 5).step(n)) for n in range(30)]
    data = Epochs(files, 4, T, 2, 5)
    assert [rows(data.step(n)) for n in reversed(range(30))] == whole[::-1]
    assert rows(data.step(10**9)) == rows(Epochs(files, 4, T, 2, 5).step(10**9))
    with pytest.raises(ValueError, match="no step -1"):
        data.step(-1)


def test_an_epoch_in_steps(files):
    data = Epochs(files, 4, T, 2, 5)
    assert data.steps_per_epoch == WINDOWS // 8 and Epochs(files, 500, T, 2, 5).steps_per_epoch == 1
    assert data.epoch(0) == 0 and data.epoch(WINDOWS) == 8
    assert data.tokens == sum(LENGTHS)


def test_the_order_is_what_it_was(files):
    """The order is part of what a checkpoint means: a run that is resumed with another one is another run."""
    assert rows(Epochs(files, 8, T, 1, 1234).step(2)) == [191, 256, 171, 176, 181, 281, 186, 231]


# ---- the permutation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [*range(1, 40), 255, 256, 257, 1000, 4097])
def test_a_permutation_of_any_number_of_places(n):
    for key in (0, 1, 2**63 - 1):
        found = permuted(np.arange(n), n, key)
        assert found.dtype == np.int64 and sorted(found.tolist()) == list(range(n))


def test_all_orders_of_a_few_are_as_frequent():
    """Of 1,200 keys each of the six orders of three should have 200; five standard deviations are 64.5."""
    told = Counter(tuple(permuted(np.arange(3), 3, key).tolist()) for key in range(1200))
    assert len(told) == 6 and all(abs(count - 200) < 64.5 for count in told.values())


def test_neighbours_are_torn_apart():
    """A sum of 4,095 signs that are independent stays below five of its deviations; a rotation's would be all equal."""
    found = permuted(np.arange(4096), 4096, 99)
    signs = np.sign(np.diff(found))
    assert abs(signs.sum()) < 5 * 64 * (1 / 3) ** 0.5
    assert len(set(np.diff(found).tolist())) > 2000
    assert abs(np.corrcoef(np.arange(4096), found)[0, 1]) < 5 / 64


# ---- finding shards ------------------------------------------------------------------------------------------------


def test_what_data_may_name(files, tmp_path):
    val = tmp_path / "some_val_000000.bin"
    shards.write_tokens(val, np.arange(9, dtype=np.uint16))
    assert find_shards(tmp_path) == find_shards(str(tmp_path / "*_train_*.bin")) == files
    assert find_shards(tmp_path / "*_00000[13].bin") == [files[1], files[3]]
    assert find_shards(tmp_path, "val") == [val]
    assert find_shards(files[2]) == [files[2]]
    odd = tmp_path / "what[1].bin"
    shards.write_tokens(odd, np.arange(9, dtype=np.uint16))
    assert find_shards(odd) == [odd], "a name that looks like a pattern"


def test_validation_is_never_what_is_trained_on(files, tmp_path):
    """A file or a glob for training names no validation: that is looked for beside it."""
    for data in (files[0], tmp_path / "*_train_*.bin", tmp_path):
        with pytest.raises(DataError, match="no validation shards"):
            find_validation(None, data)
    val = tmp_path / "some_val_000000.bin"
    shards.write_tokens(val, np.arange(9, dtype=np.uint16))
    for data in (files[0], tmp_path / "*_train_*.bin", tmp_path):
        assert find_validation(None, data) == [val]
    assert find_validation(files[3], tmp_path) == [files[3]], "what --val names is meant"


def test_other_files_of_llm_c_in_a_folder_are_not_shards(tmp_path):
    shards.write_tokens(tmp_path / "some.bin", np.arange(9, dtype=np.uint16))
    for name, magic in (("tokenizer.bin", 20240328), ("hellaswag.bin", 20240522)):
        np.array([magic, 1, 1], "<i4").tofile(tmp_path / name)
    assert find_shards(tmp_path) == [tmp_path / "some.bin"]
    with pytest.raises(DataError, match=r"no validation shards \(\*val\*\.bin\)"):
        find_shards(tmp_path, "val")


def test_nothing_found_is_told(tmp_path):
    with pytest.raises(DataError, match=r"train_\*\.bin: no file matches"):
        find_shards(tmp_path / "train_*.bin")
    with pytest.raises(DataError, match="no such file"):
        Epochs(find_shards(tmp_path / "none.bin"), 1, T, 1, 0)


# ---- shards that do not hold ---------------------------------------------------------------------------------------


def test_every_shard_is_checked_before_the_first_step(files):
    raw = files[3].read_bytes()
    files[3].write_bytes(raw[:-2])
    with pytest.raises(DataError, match=f"{files[3].name}.*promises 131 tokens, the file holds 130"):
        Epochs(files, 1, T, 1, 0)
    files[3].write_bytes(raw)
    with pytest.raises(DataError, match=f"{files[3].name}: token 296 .*vocabulary has 296"):
        Epochs(files, 1, T, 1, 0, vocabulary=296)
    with pytest.raises(DataError, match="363 tokens, too few for sequences of 500"):
        Epochs(files[:4] + files[5:], 1, 500, 1, 0)
    with pytest.raises(DataError, match="no shards"):
        Epochs([], 1, T, 1, 0)


def test_a_text_that_is_too_short_is_not_called_by_its_place_in_the_cache(files, monkeypatch):
    monkeypatch.setattr(epochs, "cache_dir", lambda: files[0].parent)
    with pytest.raises(DataError, match=r"^the text: \d+ tokens, too few"):
        Epochs(files[:1], 1, 500, 1, 0)


def test_ranks_share_the_checking_and_leave_nothing_out(files):
    """Each shard's tokens are looked at by one of them, and all of them look at every header."""
    for bad in range(len(files)):
        ids = np.fromfile(files[bad], "<u2")
        np.concatenate([ids[:-1], [60000]]).astype("<u2").tofile(files[bad])
        told = []
        for rank in range(4):
            try:
                Epochs(files, 1, T, 1, 0, rank, 4)
            except DataError as error:
                told.append((rank, str(error)))
        assert [rank for rank, _ in told] == [bad % 4] and files[bad].name in told[0][1]
        ids.tofile(files[bad])


def shrink(path: Path) -> None:
    os.truncate(path, 1100)


def disappear(path: Path) -> None:
    path.unlink()


def change(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1024)
        file.write(b"\xff" * 194)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (shrink, "shrank while training read from it: 1,100 bytes are left of 1,218"),
        (disappear, "has disappeared"),
        (change, "token 65535, but the vocabulary has 50,257; the file was changed"),
    ],
)
def test_shards_that_fail_while_they_are_read(files, harm, says):
    """One line that names the file, from the step itself and through the threads; never a signal that ends us."""
    data = Epochs(files[:1], 19, T, 1, 0)
    assert len(data.step(0)) == 1
    harm(files[0])
    with pytest.raises(DataError, match=says) as caught:
        data.step(1)
    assert str(files[0]) in str(caught.value) and "\n" not in str(caught.value)
    with Ahead(data, 1) as ahead, pytest.raises(DataError, match=says):
        next(ahead)


def test_a_checked_file_that_changed_is_checked_again(files):
    epochs.look_at(files[0])
    change(files[0])
    os.utime(files[0], ns=(1, 1))
    with pytest.raises(DataError, match="token 65535"):
        epochs.look_at(files[0])


def test_identity_tells_other_data_and_not_other_ranks(files):
    mine = Epochs(files, 4, T, 2, 1).identity()
    assert mine == Epochs(files, 2, T, 2, 1, rank=1, ranks=2).identity()
    others = [Epochs(files, 4, T, 1, 1), Epochs(files, 4, T, 2, 2), Epochs(files[1:], 4, T, 2, 1)]
    others += [Epochs(files, 4, T, 2, 1, shuffle=False), Epochs(files, 4, T + 1, 2, 1)]
    assert all(other.identity() != mine for other in others)
    shards.write_tokens(files[3], np.arange(131, dtype=np.uint16) + 1)
    assert Epochs(files, 4, T, 2, 1).identity() != mine, "the same number of other tokens"


@pytest.mark.slow
def test_a_shard_above_two_gibibytes(tmp_path):
    """2.5 billion tokens, which take no room on the disk: the last ones are read from where they are."""
    path, n = tmp_path / "train.bin", 2_500_000_001
    with path.open("wb") as file:
        file.truncate(2 * n)
        for at in (100, 2**30 - 4, n - 6):  # at the first, for a file of zeros is taken for a damaged header
            file.seek(2 * at)
            file.write(np.arange(1, 7, dtype="<u2").tobytes())
    data = Epochs([path], 1, T, 1, 0, shuffle=False)
    assert data.windows == 500_000_000
    x, y = data.step(data.windows - 1)[0]
    assert (x.tolist(), y.tolist()) == ([[1, 2, 3, 4, 5]], [[2, 3, 4, 5, 6]])
    x, y = data.step((2**30 - 4) // T)[0]  # through byte 2^31
    assert (x.tolist(), y.tolist()) == ([[1, 2, 3, 4, 5]], [[2, 3, 4, 5, 6]])
    assert Epochs([path], 64, T, 1, 0).step(10**6)[0][0].shape == (64, T)


# ---- reading ahead -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_ahead_is_direct_reading(files, threads):
    data = Epochs(files, 4, T, 2, 5)
    with Ahead(data, 6, threads) as ahead:
        for number in range(6, 60):
            for (x, y), (x2, y2) in zip(next(ahead), data.step(number), strict=True):
                assert (x == x2).all() and (y == y2).all()
    assert list(ahead) == [], "after the end there is no further step"


def test_ahead_reads_a_bounded_number_of_steps_and_ends_its_threads(files):
    read: list[int] = []

    class Slow(Epochs):
        def step(self, number: int) -> list[shards.Batch]:
            read.append(number)
            return super().step(number)

    before = threading.active_count()
    ahead = Ahead(Slow(files, 4, T, 2, 5), 0, threads=2, depth=3)
    next(ahead)
    ahead.close()
    ahead.close()
    assert len(read) <= 4 and sorted(read) == list(range(len(read)))
    assert threading.active_count() == before


# ---- validation ----------------------------------------------------------------------------------------------------


def test_validation_is_in_order_and_each_window_once(files):
    found = list(in_order(files, 4, T))
    assert len(found) == WINDOWS // 4 and all(x.shape == (4, T) for x, _ in found)
    starts = np.cumsum((0, *LENGTHS))
    every = [s + T * i for s, n in zip(starts, LENGTHS, strict=False) for i in range((n - 1) // T)]
    assert rows(found) == every[: len(found) * 4]
    assert rows(in_order(files, 4, T, limit=2)) == every[:8]
    assert rows(in_order(files, 4, T, limit=10**6)) == rows(found)


def test_ranks_share_validation(files):
    parts = [rows(in_order(files, 4, T, rank=rank, ranks=3)) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    together = [part[i : i + 4] for i in range(0, len(parts[0]), 4) for part in parts]
    assert list(itertools.chain(*together)) == rows(in_order(files, 12, T))


def test_too_little_for_validation_is_told_before_the_first_batch(files):
    with pytest.raises(DataError, match=r"97 tokens are too few for 20 sequences of 5.*smaller batch"):
        in_order(files[:1], 20, T)
