"""Made-up runs for the tests of what reads runs: records as `bench.layer` and `bench.e2e` write them, times drawn.

Times are log-normal around 1 ms: a factor of the run and race (the machine's drift), one of a variant in it (a spell
that hit it alone), one of the process, one of the round, one of the sample. Every race has an A/A control, with
processes of its own, as the harness has it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from bench.core import stats
from bench.machine.facts import State
from bench.records import run as runs
from bench.records.record import Record
from bench.records.run import Run

CALM: State = {"cores": 2, "load": 0.5, "mhz": 2000.0, "throttled": 0, "others": 0.01, "stolen": 0.0, "gpus": []}
ENVIRONMENT: dict[str, Any] = {
    "cpu": {"model": "A CPU", "isa": ["avx2"], "usable": 2},
    "gpus": [{"name": "NVIDIA H100", "driver": "580.1", "power_cap_w": 700.0}],
    "versions": {"python": "3.12.1", "torch": "2.11.0", "triton": "3.6.0"},
    "threads": {"torch": 2},
    "git": {"commit": "0123456789abcdef", "dirty": False},
}
RESAMPLES = 250  # fewer than the harness takes: the tests draw thousands of records


@dataclass(frozen=True)
class Noise:
    """Standard deviations of the factors, as shares; `modes`: a second speed that half the processes or rounds have."""

    process: float = 0.002
    round_: float = 0.002
    sample: float = 0.005
    drift: float = 0.0  # of all variants of a race in a run
    spell: float = 0.0  # of one variant of a race in a run
    process_modes: float = 0.0
    round_modes: float = 0.0


def layer_records(
    random: np.random.Generator,
    noise: Noise = Noise(),
    processes: int = 1,
    races: int = 1,
    variants: tuple[str, ...] = ("torch.eager", "torch.compile", "cpu.simd", "cpu.naive"),
    slower: dict[str, float] | None = None,
    rounds: int = 8,
    **fields: Any,
) -> list[Record]:
    """The records of one run: `races` shapes of one layer, forward, warm. The first variant is the baseline.

    slower: variant -> how much slower its source became, as a share. fields: of every record.
    """
    records: list[Record] = []
    for race in range(races):
        drift = np.exp(noise.drift * random.standard_normal())
        mine = []
        for variant in (variants[0], *variants):
            change = (slower or {}).get(variant, 0.0)
            spell = np.exp(noise.spell * random.standard_normal()) if noise.spell else 1.0
            samples = 1e-3 * drift * spell * (1 + change) * _times(random, noise, processes, rounds)
            mine.append(layer_record(variant, samples.tolist(), _labels(processes, rounds), f"model/{race}", **fields))
            if change:
                mine[-1]["source_hash"] = f"{variant} changed"
        mine[0]["control"] = True
        mine[0]["case_id"] += "-again"
        aa = stats.paired_ratio_ci(mine[0]["samples"], mine[1]["samples"], mine[0]["processes"], resamples=RESAMPLES)
        floor = max(abs(aa[1] - 1), abs(aa[2] - 1))
        records += [Record(noise_floor=floor) | r for r in mine]
    return records


def _times(random: np.random.Generator, noise: Noise, processes: int, rounds: int) -> np.ndarray:
    """(rounds of all processes, samples), 1 in the middle."""
    coins = random.integers(0, 2, (processes, 1, 1)), random.integers(0, 2, (processes, rounds, 1))
    logs = np.log1p(noise.process_modes) * coins[0] + np.log1p(noise.round_modes) * coins[1]
    for deviation, shape in (
        (noise.process, (processes, 1, 1)),
        (noise.round_, (processes, rounds, 1)),
        (noise.sample, (processes, rounds, 5)),
    ):
        logs = logs + deviation * random.standard_normal(shape)
    return np.exp(logs).reshape(processes * rounds, 5)


def _labels(processes: int, rounds: int) -> list[int]:
    return [p for p in range(processes) for _ in range(rounds)]


def layer_record(
    variant: str, samples: list[list[float]], processes: list[int], shape_name: str = "model", **fields: Any
) -> Any:
    median, low, high = stats.median_ci(samples, processes, resamples=RESAMPLES)
    return (
        Record(
            case_id=f"{shape_name} {variant} warm",
            layer="gelu",
            variant=variant,
            story="One pass.",
            phase="forward",
            shape_name=shape_name,
            shape={"B": 4, "T": 1024},
            dtype="fp32",
            device="cpu",
            threads=0,
            cache="warm",
            status="ok",
            evidence="",
            control=False,
            timer="perf_counter",
            source_hash=f"{variant} as ever",
            samples=samples,
            processes=processes,
            median_s=median,
            low_s=low,
            high_s=high,
            noise=stats.noise(samples),
            machine=CALM,
        )
        | fields
    )


def failure(variant: str, status: str = "wrong", **fields: Any) -> Record:
    record: Record = layer_record(
        variant, [[1.0]], [0], cache=None, status=status, evidence="poison survived", **fields
    )
    del record["samples"], record["processes"], record["median_s"], record["low_s"], record["high_s"], record["noise"]
    return record


def step_records(random: np.random.Generator, slower: float = 0.0, noise: float = 0.01) -> list[Record]:
    """The records of a training step: ours, and PyTorch's eager and compiled."""
    records: list[Record] = []
    for variant, seconds in (("ours", 0.5 * (1 + slower)), ("torch.eager", 1.4), ("torch.compile", 1.2)):
        samples = (seconds * np.exp(noise * random.standard_normal((10, 1)))).tolist()
        median, low, high = stats.median_ci(samples)
        records.append(
            Record(
                case_id=f"gpt2-tiny {variant}",
                layer="gpt2-tiny",
                variant=variant,
                phase="step",
                dtype="fp32",
                device="cpu",
                threads=2,
                shape={"B": 4, "T": 64, "accumulation": 1},
                status="ok",
                evidence="",
                timer="wall",
                samples=samples,
                median_s=median,
                low_s=low,
                high_s=high,
                tokens_per_s=256 / median,
                mfu_palm_of_ceiling=0.2 / median,
                machine=CALM,
            )
            | (Record(kernels={"attention forward": "cpu.flash"}) if variant == "ours" else Record())
        )
    return records


def write_run(
    folder: Path, records: Iterable[Record], environment: dict[str, Any] = ENVIRONMENT, kind: str = "layer"
) -> Path:
    """A run's folder, written as the harness writes it."""
    with mock.patch.object(runs, "environment", lambda: environment):
        run = Run.create(kind, folder, ["made", "up"])
    for record in records:
        run.append(record)
    run.close()
    return folder
