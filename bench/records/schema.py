"""What a line of records.jsonl and an env.json must be, so that their readers need not look."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

SCHEMA = 1

# What became of a case. `ok` is the only one that is ranked.
STATUSES = ("ok", "simulated", "wrong", "error", "timeout", "crash", "skipped", "impossible")
REQUIRED = ("case_id", "status")  # what makes a line a record, …
MEASURED = ("layer", "variant", "phase", "dtype")  # … and what those of a run have, but for a suite's of its parts

Record = dict[str, Any]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_time(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_mapping, value))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _is_rounds(value: Any) -> bool:
    return isinstance(value, list) and all(_is_numbers(turn) and turn and min(turn) >= 0 for turn in value)


def _is_rates(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_state(value: Any) -> bool:
    """A bench.machine.facts.snapshot()."""
    return isinstance(value, dict) and _is_rates({k: v for k, v in value.items() if k != "gpus" and v is not None})


# Of what kind a field is where it is there and not null; a reader relies on it. Those that no reader calculates with
# or joins to others are not here.
FIELDS: dict[str, Callable[[Any], bool]] = {
    name: right
    for right, names in {
        _is_text: "case_id status layer variant story phase dtype device shape_name cache evidence utc run timer"
        " source_hash reproduce baseline stopped configuration throttled graph_evidence",
        _is_time: "median_s",
        _is_number: "low_s high_s noise noise_floor span_s graph_s launch_bound error_ratio proof_cases threads calls"
        " flops bytes floor_s bytes_per_s flops_per_s of_ceiling speedup speedup_low speedup_high saved_bytes"
        " workspace_bytes compile_s peak_bytes energy_j sm_mhz moved_of_minimum sectors_per_request sectors_of_ideal"
        " wavefronts_of_ideal registers spill_bytes shared_bytes occupancy tensor_core_instructions wide_instructions"
        " ceiling_bytes_per_s ceiling_flops_per_s datasheet_bytes_per_s datasheet_flops_per_s"
        " predicted_alone_s predicted_in_context_s change_s change_low_s change_high_s"
        " tokens_per_s mfu_palm_of_ceiling mfu_llmc_of_ceiling mfu_palm_of_datasheet mfu_llmc_of_datasheet"
        " first_loss last_loss worst_loss worst_norm",
        _is_flag: "control deterministic",
        _is_mapping: "shape",
        _is_rates: "canary in_context_s alone_s",
        _is_state: "machine",
        _is_numbers: "processes losses",
        _is_rounds: "samples",
    }.items()
    for name in names.split()
}


OF_ENVIRONMENT: dict[str, Callable[[Any], bool]] = {
    "schema": _is_number,
    "gpus": _is_mappings,
    **dict.fromkeys(("kind", "started", "command"), _is_text),
    **dict.fromkeys(("cpu", "versions", "threads", "git"), _is_mapping),
}


def of_another_kind(document: Mapping[str, Any], kinds: Mapping[str, Callable[[Any], bool]]) -> str:
    """The first field that is not what it should be; "" where all are."""
    found = (name for name, right in kinds.items() if document.get(name) is not None and not right(document[name]))
    return next(found, "")


def fault(record: Record, required: Sequence[str]) -> str:
    """What is wrong with a record; "" where a reader can rely on it."""
    if lacks := [name for name in (*REQUIRED, *required) if not record.get(name)]:
        return f"it has no {lacks[0]}"
    if name := of_another_kind(record, FIELDS):
        return f"{name} is {json.dumps(record[name])[:40]}"
    if record["status"] not in STATUSES:
        return f"status is {record['status']!r}"
    if required and record["status"] == "ok" and record.get("samples") and not record.get("median_s"):
        return "it has samples and no median_s"
    if record.get("high_s") is not None and record.get("low_s") is None:
        return "it has high_s and no low_s"
    if record.get("processes") and len(record["processes"]) != len(record.get("samples") or []):
        return "its rounds are not as many as their processes"
    return ""
