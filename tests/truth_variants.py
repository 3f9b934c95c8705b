"""A folder of variants `torch.truth`: each layer's reference, computed in fp64 and written into the outputs.

They let the training step be tested apart from any kernel, and broken copies of them stand for wrong kernels.
"""

from pathlib import Path

import torch

from reference import contract

LAYERS = (
    *("embedding", "layernorm", "residual_layernorm", "matmul", "attention"),
    *("fused_classifier", "global_norm", "adamw"),
)


def write(folder: Path, stem: str = "truth", layers: tuple[str, ...] = LAYERS, body: str = "") -> Path:
    """Write torch.<stem> for `layers`; `body` ends each file. Returns the folder."""
    for layer in layers:
        file = folder / "torch" / layer / f"{stem}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        module = contract.load(layer)
        parts = [
            '"""The reference in fp64, written into the outputs: slow and exact."""',
            "from tests import truth_variants",
        ]
        for phase in contract.phases_of(module):
            p = contract.pass_of(module, phase)
            outputs = ", ".join(f"{name}={name}" for name in p.keyword())
            parts.append(
                f"def {phase}({', '.join(p.positional())}, *, {', '.join(p.keyword())}):\n"
                f"    truth_variants.call({layer!r}, {phase!r}, [{', '.join(p.positional())}], dict({outputs}))"
            )
        file.write_text("\n\n\n".join([*parts, body]))
    return folder


def call(layer: str, phase: str, args: list, outputs: dict) -> None:
    """Run the reference on fp64 copies and round its results into `outputs`, adding where the call accumulates."""
    module = contract.load(layer)
    p = contract.pass_of(module, phase)
    add = p.accumulates and args[-1]
    inputs = [_wide(value) for value in args[: len(p.inputs) + len(p.scalars)]]
    inplace = {t.name: _wide(outputs[t.name]) for t in p.outputs if t.inplace}
    results = getattr(module, phase)(*inputs, **inplace)
    for t in p.outputs:
        if outputs[t.name] is None:
            continue
        into, values = outputs[t.name], results[t.name]
        for x, value in zip(into if t.many else [into], values if t.many else [values], strict=True):
            assert x.shape == value.shape, (layer, phase, t.name, x.shape, value.shape)
            x.copy_(x.double() + value if t.accumulates and add else value)


def _wide(value):
    if isinstance(value, list):
        return [_wide(v) for v in value]
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.double()
    return value
