"""Proofs kept in a folder, so that what was proved once in a suite is not proved again before it is timed.

A proof is taken over only where nothing that it rests on has changed: the variant's source, its layer's contract, the
harness, the yardstick's source, the device with its driver, the versions of what compiles and computes, the environment
that these read, and the cases themselves, slices of the timed shapes among them. Where one of them differs the variant
is proved again. A proof in the simulator is never kept.

The folder can be written to by whoever runs variants, as all results can (docs/judge.md): calls that are timed are
judged in either case.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import HOME
from bench.core.case import Case
from bench.core.files import put
from bench.core.process import OUT_OF_MEMORY
from bench.core.variants import Variant
from bench.machine.devices import is_gpu
from bench.records.environment import environment
from bench.records.schema import BAD
from bench.trial.prove import Proof, cases_for
from bench.trial.room import Setting

HARNESS = ("bench", "reference")  # whose sources decide what is right
READ_BY_COMPILERS = ("CUDA_", "CUBLAS_", "NVIDIA_", "PYTORCH_", "TORCH", "TRITON_", "CXX", "CC", "LAYERBENCH_")
NOT_READ = ("TRITON_CACHE_DIR", "LAYERBENCH_CACHE", "LAYERBENCH_REPORT")  # where things lie, not what they are
DEFAULTS = {"TRITON_DEFAULT_FP_FUSION": "1"}  # that kernels/triton sets where it is imported
SAVED = tuple(f.name for f in dataclasses.fields(Proof) if f.name not in ("variant", "phase", "dtype", "counts"))
Grounds = dict[str, Any]


@dataclass(frozen=True)
class Ledger:
    """The proofs of one folder, for a session with one setting."""

    folder: Path
    setting: Setting

    def find(self, v: Variant, phase: str, dtype: str, timed: Sequence[Any], yardstick: Variant | None) -> Proof | None:
        """The proof of a phase that was made on the same grounds, of the cases that it would be made of now; or None.

        timed: the shapes that it is to be timed at.
        """
        try:
            kept = json.loads(self._file(v, phase, dtype).read_text())
            proof = Proof(v, phase, dtype, **{name: kept["proof"][name] for name in SAVED})
            wanted = grounds(v, phase, dtype, self.setting, yardstick)
            first, second = proof.seeds  # int() of what is none raises
            cases = cases_for(v, phase, dtype, [int(first), int(second)], timed, self.setting)
            wanted["cases"] = digest_of(cases)
            return proof if kept["grounds"] == wanted and _whole(proof, len(cases)) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, proof: Proof, timed: Sequence[Any], yardstick: Variant | None, before: Grounds) -> None:
        """Write a proof down. before: `grounds` as they were when it began; nothing is kept where they have changed."""
        v = proof.variant
        now = grounds(v, proof.phase, proof.dtype, self.setting, yardstick)
        failed = not proof.ok and proof.status != "wrong"
        crowded = failed and OUT_OF_MEMORY in f"{proof.status} {proof.evidence}".lower()  # by what ran beside it
        if proof.simulated or crowded or not proof.seeds or now != before:
            return
        now["cases"] = digest_of(cases_for(v, proof.phase, proof.dtype, proof.seeds, timed, self.setting))
        document = {"grounds": now, "proof": {name: getattr(proof, name) for name in SAVED}}
        put(self._file(v, proof.phase, proof.dtype), (json.dumps(document, indent=1) + "\n").encode())

    def _file(self, v: Variant, phase: str, dtype: str) -> Path:
        return self.folder / f"{v.layer}-{v.name}-{phase}-{dtype}.json"


def _whole(proof: Proof, cases: int) -> bool:
    """Whether what it says of itself fits together: what is right was right in all its cases, but those it lacks."""
    if not proof.ok:
        return proof.status in BAD or proof.status == "skipped"
    passed = proof.cases == cases or (0 < proof.cases < cases and bool(proof.unsupported))
    return passed and proof.cases_all == cases and proof.check == "ok"


def grounds(v: Variant, phase: str, dtype: str, setting: Setting, yardstick: Variant | None) -> Grounds:
    """What a proof rests on, its cases left out."""
    return {
        "what": f"{v.layer} {v.name} {phase} {dtype}",
        "source": v.source_hash(),
        "outside": _files_digest([v.path.parent.parent.parent]) if v.outside else "",
        "yardstick": yardstick.source_hash() if yardstick else "",
        "harness": _harness(),
        "setting": f"{setting.device} {'' if is_gpu(setting.device) else setting.threads} {setting.simulate}",
        "machine": _machine(is_gpu(setting.device)),
    }


def digest_of(cases: Iterable[Case]) -> str:
    return _digest([[c.layer, c.phase, c.name, c.shape, c.seed, c.edit] for c in cases])


@functools.cache
def _harness() -> str:
    shared = [p for p in (HOME / "kernels").iterdir() if p.is_file()]
    return _files_digest([HOME / name for name in HARNESS], shared)


@functools.cache
def _machine(gpu: bool) -> str:
    """On a GPU the number of threads of the host is left out: proofs run side by side, timing does not."""
    found = dict(environment())
    told: dict[str, Any] = {name: found.get(name) for name in ("gpus", "versions", *(() if gpu else ("threads",)))}
    cpu = found.get("cpu")
    told["cpu"] = {k: v for k, v in cpu.items() if k in ("model", "isa")} if isinstance(cpu, dict) else None
    if not gpu:
        told["usable"] = cpu.get("usable") if isinstance(cpu, dict) else None
    read = DEFAULTS | os.environ
    told["environment"] = {k: v for k, v in read.items() if k.startswith(READ_BY_COMPILERS) and k not in NOT_READ}
    return _digest(told)


def _files_digest(folders: Iterable[Path], files: Iterable[Path] = ()) -> str:
    found = [p for folder in folders for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    digest = hashlib.sha256()
    for path in sorted([*found, *files]):
        digest.update(os.fsencode(path.name) + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()[:16]
