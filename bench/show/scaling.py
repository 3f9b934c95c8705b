"""What `bench.scaling` predicts, on a terminal: one rank's step, the messages, many ranks, and runs beside it."""

from typing import Any

from bench.records import DASH
from bench.show.sheet import Col, Sheet
from bench.show.terminal import console
from bench.show.texts import duration, number, percent


def print_scaling(said: dict[str, Any]) -> None:
    """said: the document of bench.trainer.scaling."""
    screen = console()
    parts, link, cut = said["parts_s"], said["link"], said["buckets"]
    names = {"forward": "forward", "backward": "backward", "norm": "norm", "adamw": "AdamW", "rest": "rest"}
    told = ", ".join(f"{text} {_signed(parts[name])}" for name, text in names.items())
    screen.print(
        f"one rank: {said['step']}: {duration(parts['step'])} a step ({told}) [{said['source']}]", markup=False
    )
    last = max(bucket["ready"] for bucket in cut)
    late = sum(bucket["bytes"] for bucket in cut if bucket["ready"] == last) / said["message_bytes"]
    screen.print(
        f"gradients: {number(said['message_bytes'], 1e6)} MB in {len(cut)} buckets; {percent(late)} are final only "
        "with the last of backward",
        highlight=False,
    )
    screen.print(f"link: {_link(link)}", highlight=False)
    _ranks(said["ranks"]).print(screen)
    if said["measured"]:
        _measured(said["measured"]).print(screen)


def _signed(seconds: float) -> str:
    return f"-{duration(-seconds)}" if seconds < 0 else duration(seconds)


def _link(link: dict[str, Any]) -> str:
    told = f"{number(link['bandwidth'], 1e9)} GB/s a rank, {number(link['latency'], 1e-6)} µs a message, {link['way']}"
    if link["between"] is not None:
        told += f"; {number(link['between'], 1e9)} GB/s beyond {link['node']} ranks"
    return told


def _ranks(rows: list[dict[str, Any]]) -> Sheet:
    heads = [
        Col("ranks", right=True),
        *(Col(name, right=True, rank=2) for name in ("tokens a step", "sums", "left over")),
    ]
    for rank, how in ((1, "no overlap"), (0, "overlap")):
        heads += [Col(f"{how}:\n{name}", right=True, rank=rank) for name in ("step", "tok/s", "efficiency")]
    sheet = Sheet("predicted: an upper bound, since ranks share nothing and wait for sums alone", heads)
    for row in rows:
        cells = [str(row["ranks"]), f"{row['tokens_per_step']:,}", duration(row["sums_s"]), duration(row["exposed_s"])]
        for how in ("without_overlap", "with_overlap"):
            found = row[how]
            cells += [duration(found["step_s"]), f"{found['tokens_per_s']:,.0f}", percent(found["efficiency"])]
        sheet.add(*cells)
    return sheet


def _measured(runs: list[dict[str, Any]]) -> Sheet:
    heads = [Col(name, right=True) for name in ("ranks", "threads", "no overlap", "overlap", "measured", "of overlap")]
    sheet = Sheet("predicted and measured: the median step of training runs", [Col("run"), *heads])
    for run in runs:
        threads = str(run["threads"] or DASH)
        cells = [run["run"], str(run["ranks"]), threads]
        if "predicted" not in run:
            sheet.add(*cells, DASH, DASH, duration(run["step_s"]), DASH)
            sheet.tell(f"{run['run']}: {run['why_not_compared']}")
            continue
        both = [run["predicted"][how]["step_s"] for how in ("without_overlap", "with_overlap")]
        sheet.add(*cells, *map(duration, both), duration(run["step_s"]), f"{run['step_s'] / both[1]:.2f}x")
    return sheet
