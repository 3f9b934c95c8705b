"""Predicted steps on many ranks: the formulae by hand, the parts of a step from runs, and runs beside predictions."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cli import CannotGoOn
from bench.models import CallId
from bench.models.program import program
from bench.records.schema import SCHEMA
from bench.trainer import scaling
from bench.trainer.reduction import last_writers
from bench.trainer.scaling import Bucket, Forecast, Link, Parts, Sizes
from tests import commands
from tests.bench.trainer.runs import SMALL
from tests.bench.trainer.together import together

SIZES = Sizes(SMALL, 2, 32, 1, "fp32")


# ---- the link ------------------------------------------------------------------------------------------------------


def test_a_ring_s_seconds_are_the_formula_s():
    link = Link(bandwidth=100.0, latency=0.5)
    assert link.sum(1000, 1) == 0
    assert link.sum(1000, 2) == 2 * (0.5 + 1000 / 2 / 100)
    assert link.sum(1000, 4) == 2 * 3 * (0.5 + 1000 / 4 / 100)
    assert link.half(1000, 4) == link.sum(1000, 4) / 2


def test_a_tree_s_seconds_are_the_formula_s():
    link = Link(100.0, 0.5, way="tree")
    assert [link.sum(1000, n) for n in (1, 2, 5, 8)] == [0, 21, 23, 23]


def test_beyond_a_node_the_slower_link_counts():
    link = Link(100.0, 0.0, node=4, between=10.0)
    assert link.sum(1000, 4) == 2 * 3 * 1000 / 4 / 100 and link.sum(1000, 8) == 2 * 7 * 1000 / 8 / 10
    assert replace(link, between=1e9).sum(1000, 8) == 2 * 7 * 1000 / 8 / 100, "the slower one is inside"
    assert Link(100.0, 0.0, node=4).sum(1000, 8) == 2 * 7 * 1000 / 8 / 100


def test_a_link_is_found_again_from_its_times():
    sizes = scaling.LINK_BYTES
    link = scaling.fitted(sizes, [Link(3e9, 4e-5).sum(n, 4) for n in sizes], 4)
    assert link.bandwidth == pytest.approx(3e9) and link.latency == pytest.approx(4e-5)
    none = scaling.fitted(sizes, [n / 1e9 * (1 + n / 1e8) for n in sizes], 2)  # small ones too fast for any latency
    assert none.latency == 0 and 0.8e9 < none.bandwidth < 1e9
    with pytest.raises(CannotGoOn, match="do not grow with the message"):
        scaling.fitted(sizes, [1 / n for n in sizes], 2)


def test_a_link_between_processes_is_measured():
    found = together(2, scaling.measure_link)
    assert found[0] == found[1] and 1e6 < found[0].bandwidth < 1e12 and 0 <= found[0].latency < 0.1


def test_a_link_is_written_and_read(tmp_path):
    scaling.write_link(tmp_path / "link.json", Link(2e9, 1e-5), 2, "cuda:1")
    assert scaling.read_link(tmp_path / "link.json") == Link(2e9, 1e-5)
    for content in ("", "[]", '{"bandwidth": 0, "latency": 0}', '{"bandwidth": "x", "latency": 0}', '{"latency": 1}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(CannotGoOn, match=r"bad\.json"):
            scaling.read_link(tmp_path / "bad.json")
    with pytest.raises(CannotGoOn, match=r"none\.json"):
        scaling.read_link(tmp_path / "none.json")


# ---- gradients -----------------------------------------------------------------------------------------------------


def parts(**changes) -> Parts:
    """A step whose every call takes a second, for a model of two layers."""
    calls = tuple((call.id, 1.0) for call in scaling.skeleton(SIZES))
    return replace(Parts(SIZES, calls, 2.0, 8.0, 0.5, 1, "made up"), **changes)


def test_what_is_final_when_is_as_in_the_real_step():
    """The skeleton's calls and the gradients that they write last, held against the model's own."""
    real = program(SMALL, 1, 8, "fp32")
    calls = real.forward_backward(accumulate=False)
    assert [c.id for c in calls] == [c.id for c in scaling.skeleton(SIZES)]
    small = scaling._small(SIZES)
    last = last_writers(small.memory, small.forward_backward(accumulate=False))
    assert last == last_writers(real.memory, calls)
    assert {n for n, at in last.items() if at == max(last.values())} == {"wte", "wpe"}


def test_buckets_hold_every_gradient_once_and_come_in_order():
    found = scaling.buckets(parts(), 1 << 12)
    assert sum(bucket.bytes for bucket in found) == SMALL.parameters * 4 == SIZES.bytes
    assert [b.ready for b in found] == sorted(b.ready for b in found) and found[-1].ready == parts().micro_batch
    assert {b.bytes for b in found[:-1]} == {1 << 12} and found[0].ready < found[-1].ready
    assert len(scaling.buckets(parts(), 1 << 40)) == 1
    assert sum(b.bytes for b in scaling.buckets(parts(sizes=replace(SIZES, dtype="bf16")))) == SMALL.parameters * 2


# ---- many ranks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def two_buckets(monkeypatch):
    """A micro-batch of 2 s whose gradients are final after 1 s and 2 s; 100 bytes/s between ranks, no latency."""
    monkeypatch.setattr(scaling, "buckets", lambda parts, nbytes: [Bucket(100, 1.0), Bucket(300, 2.0)])
    ids = (CallId("matmul", "fc", "forward"), CallId("matmul", "fc", "backward"))
    return parts(calls=((ids[0], 0.75), (ids[1], 1.25)))


def test_one_rank_is_what_was_measured(two_buckets):
    row = scaling.forecast(two_buckets, Link(100.0, 1.0), 1)
    assert isinstance(row, Forecast)
    assert row.without_overlap == row.with_overlap == two_buckets.step() == 2 + 2 + 8 + 0.5
    assert row.efficiency(row.with_overlap) == 1 and row.tokens == 64
    assert (two_buckets.phase("forward"), two_buckets.phase("backward")) == (0.75, 1.25)


def test_a_step_with_and_without_overlap_by_hand(two_buckets):
    """Sums of 1 s and 3 s: from 1 to 2 beside backward, and from 2 to 5 after it."""
    row = scaling.forecast(two_buckets, Link(100.0, 0.0), 2)
    assert row and (row.sums, row.exposed) == (4.0, 3.0)
    assert (row.without_overlap, row.with_overlap) == (16.5, 15.5)
    assert row.efficiency(row.with_overlap) == pytest.approx(12.5 / 15.5)


def test_a_sum_waits_for_the_one_before_it(two_buckets):
    """Of 10 s and 30 s: the second begins at 11 and not at 2."""
    row = scaling.forecast(two_buckets, Link(10.0, 0.0), 2)
    assert row and row.exposed == 1 + 10 + 30 - 2


def test_only_the_last_micro_batch_hides_sums(two_buckets):
    more = replace(two_buckets, sizes=replace(SIZES, accumulation=4))
    row = scaling.forecast(more, Link(100.0, 0.0), 2)
    assert row and row.exposed == 3.0 and row.compute == 4 * 2 + 10.5 and row.tokens == 2 * 4 * 64


def test_a_sharded_optimizer_by_hand(two_buckets):
    """Half of each sum; AdamW by two; and half a sum of all parameters, with nothing beside it."""
    row = scaling.forecast(two_buckets, Link(100.0, 0.0), 2, "sharded")
    gather = SIZES.bytes / 2 / 100
    assert row and row.sums == 2 + gather and row.exposed == 1.5 + gather and row.compute == 2 + 2 + 4 + 0.5
    assert scaling.forecast(two_buckets, Link(100.0, 0.0), 1, "sharded") == scaling.forecast(
        two_buckets, Link(100.0, 0.0), 1
    )


def test_a_batch_that_all_share(two_buckets):
    """Eight micro-batches in all: the more ranks, the fewer each; what cannot be cut is told."""
    rows = {n: scaling.forecast(two_buckets, Link(100.0, 0.0), n, total_batch=512) for n in (1, 2, 3, 8, 16)}
    assert rows[3] is None and rows[16] is None
    assert [rows[n].tokens for n in (1, 2, 8)] == [512] * 3  # type: ignore[union-attr]
    assert [rows[n].compute for n in (1, 2, 8)] == [26.5, 18.5, 12.5]  # type: ignore[union-attr]
    assert rows[2] and rows[2].efficiency(rows[2].with_overlap) == pytest.approx(26.5 / 2 / 21.5)


def test_more_overlap_is_never_slower():
    made = parts()
    for n in (2, 8, 512):
        for link in (Link(1e4, 0.0), Link(1e6, 1e-3), Link(1e12, 0.0)):
            row = scaling.forecast(made, link, n, bucket_bytes=1 << 18)
            assert row and made.step() <= row.with_overlap <= row.without_overlap
            assert 0 < row.efficiency(row.without_overlap) <= row.efficiency(row.with_overlap) <= 1


# ---- from runs -----------------------------------------------------------------------------------------------------


def e2e_run(folder: Path, **changes) -> Path:
    """A run of bench.e2e in which every call, all its repetitions in a step, took 10 ms."""
    ids = {str(call.id) for call in scaling.skeleton(SIZES)} | {"global_norm forward", "adamw forward"}
    record = {
        "schema": SCHEMA,
        "case_id": "gpt2-tiny ours",
        "layer": "gpt2-tiny",
        "variant": "ours",
        "phase": "step",
        "dtype": "fp32",
        "device": "cpu",
        "threads": 1,
        "status": "ok",
        "shape": {"B": 2, "T": 32, "accumulation": 2},
        "median_s": 0.01 * len(ids) + 0.005,
        "in_context_s": dict.fromkeys(sorted(ids), 0.01),
    }
    folder.mkdir()
    rows = [record | changes, record | {"variant": "torch.compile", "case_id": "other", "median_s": 9.0}]
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def train_run(folder: Path, ranks: int, ms: list[float], **changes) -> Path:
    options = {"batch": 2, "seq": 32, "dtype": "fp32", "threads": 1, "optimizer": "replicated", "recompute": None}
    begin = {"event": "start", "model": "gpt2-tiny", "ranks": ranks, "tokens_per_step": 2 * 32 * 2 * ranks}
    steps = [{"event": "step", "step": i + 1, "ms": each, "skipped": None} for i, each in enumerate(ms)]
    folder.mkdir()
    lines = [begin | {"options": options | changes}, *steps, {"event": "end"}]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_parts_of_a_step_that_was_timed_call_by_call(tmp_path):
    found, seen = scaling.read([e2e_run(tmp_path / "e2e")])
    record = json.loads((tmp_path / "e2e" / "records.jsonl").read_text().splitlines()[0])
    assert seen == [] and (found.norm, found.adamw) == (0.01, 0.01) and found.rest == pytest.approx(0.005)
    assert found.step() == pytest.approx(record["median_s"]) and found.sizes == replace(SIZES, accumulation=2)
    fc = [seconds for id, seconds in found.calls if id == CallId("matmul", "fc", "forward")]
    assert len(fc) == SMALL.L and sum(fc) == pytest.approx(0.01 / 2), "repetitions and micro-batches share the time"


def test_runs_that_say_nothing_are_named(tmp_path):
    lacks = e2e_run(tmp_path / "lacks", in_context_s={"adamw forward": 0.01})
    with pytest.raises(CannotGoOn, match="calls are others now: no time of attention backward"):
        scaling.read([lacks])
    with pytest.raises(CannotGoOn, match=r"untimed: no step of ours that was timed call by call"):
        scaling.read([e2e_run(tmp_path / "untimed", in_context_s={})])
    with pytest.raises(CannotGoOn, match=r"neither a run of bench\.e2e nor"):
        scaling.read([tmp_path])
    with pytest.raises(CannotGoOn, match="no run on one rank"):
        scaling.read([train_run(tmp_path / "two", 2, [5.0] * 4)])
    with pytest.raises(CannotGoOn, match="too few to say"):
        scaling.read([train_run(tmp_path / "short", 1, [5.0] * 2)])


@pytest.mark.parametrize(
    ("at", "key", "value"),
    [
        (0, "model", None),
        (0, "options", []),
        (0, "ranks", {}),
        (0, "tokens_per_step", "many"),
        (3, "ms", "soon"),
        (3, "ms", 10**400),
    ],
)
def test_a_damaged_line_is_told_in_one_of_ours(tmp_path, at, key, value):
    folder = train_run(tmp_path / "one", 1, [5.0] * 3)
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    lines[at][key] = value
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(CannotGoOn, match=r"one: (what it tells of its step is damaged|fewer than 3 steps)"):
        scaling.read([folder])


def test_a_training_run_on_one_rank_is_spread_by_flops(tmp_path):
    found, (seen,) = scaling.read([train_run(tmp_path / "one", 1, [900.0, 700.0, 50.0, 60.0, 40.0])])
    assert seen.step == 0.05 == pytest.approx(found.step()) and seen.steps == 3, "the first two are warm-up"
    assert found.sizes == replace(SIZES, accumulation=2) and "FLOPs" in found.source
    matmuls = sum(seconds for id, seconds in found.calls if id.layer == "matmul")
    assert 0.8 < matmuls / found.micro_batch < 1
    assert found.phase("backward") / found.phase("forward") == pytest.approx(2, rel=0.1)


def test_steps_before_a_resume_and_skipped_ones_are_not_looked_at(tmp_path):
    folder = train_run(tmp_path / "one", 1, [1.0] * 5)
    lines = (folder / "train.jsonl").read_text().splitlines()
    again = json.loads(lines[0]) | {"event": "resume"}
    later = [
        {"event": "step", "step": 9, "ms": ms, "skipped": why} for ms, why in ((7, ""), (7, ""), (80, "z"), (6, ""))
    ]
    (folder / "train.jsonl").write_text("\n".join([*lines, *map(json.dumps, [again, *later])]) + "\n")
    seen = scaling.read_seen(folder)
    assert (seen.step, seen.steps) == (0.006, 1)


def test_runs_on_several_ranks_beside_what_was_predicted(tmp_path):
    runs = [e2e_run(tmp_path / "e2e"), train_run(tmp_path / "two", 2, [300.0] * 5)]
    runs += [train_run(tmp_path / "other", 2, [300.0] * 5, dtype="bf16")]
    found, seen = scaling.read(runs)
    link = Link(1e9, 0.0)
    two, other = scaling.compared(found, link, seen)
    assert two.seen.step == 0.3 and two.forecast == scaling.forecast(found, link, 2, total_batch=256)
    assert other.forecast is None and "another step: gpt2-tiny bf16" in other.why


# ---- command line --------------------------------------------------------------------------------------------------


def command(*arguments: object) -> commands.Done:
    return commands.run("scaling", *arguments)


def test_the_command_prints_both_tables_and_one_document(tmp_path):
    runs = [e2e_run(tmp_path / "e2e"), train_run(tmp_path / "two", 2, [300.0] * 5)]
    runs += [train_run(tmp_path / "other", 2, [300.0] * 5, dtype="bf16")]
    shown = command(*runs, "--bandwidth", 1, "--latency", 20, "--ranks", "1,2,16", "--node", 2, "--between", 0.5)
    assert shown.returncode == 0, shown.stderr
    for text in ("one rank: gpt2-tiny fp32, B=2 T=32, 2 micro-batches", "20 µs a message", "0.5 GB/s beyond 2 ranks"):
        assert text in shown.stdout
    assert "predicted and measured" in shown.stdout and "300 ms" in shown.stdout and "another step" in shown.stdout
    done = command(*runs, "--bandwidth", 1, "--ranks", "1,2,512", "--json")
    said = json.loads(done.stdout)
    assert [row["ranks"] for row in said["ranks"]] == [1, 2, 512] and said["link"]["latency"] == 1e-5
    assert said["ranks"][0]["with_overlap"]["efficiency"] == 1
    assert said["parts_s"]["step"] == pytest.approx(
        sum(v for k, v in said["parts_s"].items() if k != "step") * 2 - 0.025
    )
    assert said["measured"][0]["predicted"]["ranks"] == 2 and "why_not_compared" in said["measured"][1]


def test_what_is_missing_is_told_in_one_line(tmp_path):
    run = e2e_run(tmp_path / "e2e")
    for arguments, says in (
        ([], "of which run?"),
        ([run], "which link?"),
        ([run, "--bandwidth", 1, "--link", "x"], "which link?"),
        ([run, "--bandwidth", 1, "--between", 1], "--between needs --node"),
        (["--measure-link"], "a link is between ranks"),
    ):
        done = command(*arguments)
        assert done.returncode == 64 and says in done.stderr and "Traceback" not in done.stderr
