"""What must be the same for a difference in time to be the code's: of the machine and of torch, not of the source."""

from bench.records.environment import Environment

SAME_MACHINE = ("cpu.model", "cpu.isa", "cpu.usable", "cpu.quota", "gpus", "threads", "settings", "versions.torch")
GPU = ("name", "driver", "power_cap_w", "memory_bytes", "max_sm_mhz", "max_memory_mhz", "ecc", "mig")  # each of them

Differences = dict[str, tuple[object, object]]  # key -> (before, after)


def differences(before: Environment, after: Environment) -> Differences:
    """key -> (before, after) of what must be the same and is not, of two env.json."""
    if not before or not after:
        told = ["there" if environment else "missing" for environment in (before, after)]
        return {"env.json": (told[0], told[1])}
    old, new = _conditions(before), _conditions(after)
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def _conditions(environment: Environment) -> dict[str, object]:
    """The keys of an environment that a time depends on, flat."""
    flat: dict[str, object] = {}
    for key in SAME_MACHINE:
        value: object = environment
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if key == "gpus":  # in the order of the driver
            gpus = environment.get("gpus") or []
            flat["gpus"] = len(gpus)
            for i, gpu in enumerate(gpus):
                flat |= {f"gpu {i} {name}": gpu.get(name) for name in GPU}
        elif isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value or None  # runs from before there were settings had none
    return flat
