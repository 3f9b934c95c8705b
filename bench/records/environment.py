"""What env.json says of a machine: an allow-list of what bench.machine.facts knows."""

from collections.abc import Mapping
from typing import Union

from bench.machine import facts
from bench.records.scrub import clean

Rules = Mapping[str, Union[bool, "Rules"]]


class Environment(facts.Machine, total=False):
    """An env.json: what was measured on, when, and by which command."""

    schema: int
    kind: str  # "layer", "e2e", …
    started: str
    command: str
    resumed: list[str]


def _names(text: str) -> dict[str, bool]:
    return dict.fromkeys(text.split(), True)


# What env.json may hold of bench.machine.facts.describe(); everything else stays here. True lets a plain value or
# a list of plain values through; a mapping is an allow-list of its own.
ALLOWED: Rules = {
    "cpu": _names("model architecture cores threads usable quota isa max_mhz governor virtual")
    | {"cache_bytes": _names("L1d L2 L3")},
    "memory_bytes": True,
    "gpus": _names("name capability memory_bytes power_cap_w max_sm_mhz max_memory_mhz ecc mig driver"),
    "versions": _names("python os torch torch_cuda triton cupy numpy pandas scipy compiler nvidia-ml-py"),
    "threads": _names(
        "torch OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS OMP_PROC_BIND OMP_PLACES OMP_WAIT_POLICY"
        " GOMP_CPU_AFFINITY KMP_AFFINITY KMP_BLOCKTIME"
    ),
    "settings": True,
    "git": _names("commit dirty"),
}


def environment() -> Environment:
    """What bench.machine says about this machine, through the allow-list."""
    return clean(allowed(facts.describe(), ALLOWED), free_text=True)


def allowed(document: object, rules: bool | Rules) -> object:
    """The part of `document` that `rules` names."""
    if isinstance(document, list):
        return [allowed(entry, rules) for entry in document]
    if isinstance(document, Mapping):
        if isinstance(rules, bool):  # a mapping where a plain value was expected has keys nobody looked at
            return None
        return {key: allowed(document[key], rule) for key, rule in rules.items() if key in document}
    return document if rules is True else None
