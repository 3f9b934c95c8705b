"""What a line of records.jsonl must be, so that its readers need not look."""

import json
from collections.abc import Sequence

from bench.records.record import CHECKS, Record

SCHEMA = 1

# What became of a case. `ok` is the only one that is ranked.
GOOD = ("ok", "simulated")
BAD = ("wrong", "impossible", "error", "crash", "timeout")
STATUSES = ("ok", "simulated", "wrong", "error", "timeout", "crash", "skipped", "impossible")
REQUIRED = ("case_id", "status")  # what makes a line a record, …
MEASURED = ("layer", "variant", "phase", "dtype")  # … and what those of a run have, but for a suite's of its parts


def fault(record: Record, required: Sequence[str]) -> str:
    """What is wrong with a record; "" where a reader can rely on it."""
    if lacks := [name for name in (*REQUIRED, *required) if not record.get(name)]:
        return f"it has no {lacks[0]}"
    wrong = (name for name, right in CHECKS.items() if record.get(name) is not None and not right(record.get(name)))
    if name := next(wrong, ""):
        return f"{name} is {json.dumps(record.get(name))[:40]}"
    if record["status"] not in STATUSES:
        return f"status is {record['status']!r}"
    if required and record["status"] == "ok" and record.get("samples") and not record.get("median_s"):
        return "it has samples and no median_s"
    if record.get("high_s") is not None and record.get("low_s") is None:
        return "it has high_s and no low_s"
    if record.get("processes") and len(record["processes"]) != len(record.get("samples") or []):
        return "its rounds are not as many as their processes"
    return ""
