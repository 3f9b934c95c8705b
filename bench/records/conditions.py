"""What must be the same for a difference in time to be the code's: of the machine and of torch, not of the source."""

from collections.abc import Mapping
from typing import Any

SAME_MACHINE = ("cpu.model", "cpu.isa", "cpu.usable", "cpu.quota", "gpus", "threads", "versions.torch")
GPU = ("name", "driver", "power_cap_w", "memory_bytes", "max_sm_mhz", "max_memory_mhz", "ecc", "mig")  # each of them


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """key -> (before, after) of what must be the same and is not, of two env.json."""
    if not before or not after:
        told = ["there" if environment else "missing" for environment in (before, after)]
        return {"env.json": (told[0], told[1])}
    old, new = _conditions(before), _conditions(after)
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def _conditions(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of an environment that a time depends on, flat."""
    flat: dict[str, Any] = {}
    for key in SAME_MACHINE:
        value: Any = environment
        for name in key.split("."):
            value = (value or {}).get(name)
        if key == "gpus":  # in the order of the driver
            flat["gpus"] = len(value or [])
            for i, gpu in enumerate(value or []):
                flat |= {f"gpu {i} {name}": gpu.get(name) for name in GPU}
        elif isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat
