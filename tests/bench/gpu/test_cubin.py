"""Products of the tensor cores that ptxas says it serialized are a fault."""

from bench.core import variants
from bench.gpu import cubin, resources
from kernels.cuda.compiler import compile_source

KERNEL = "__global__ void {}(float* out) {{ out[threadIdx.x] += 1; }}\n"
SAYS = (
    "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to "
    "insufficient register resources for the wgmma pipeline in the function '{}'\n"
)


def test_a_kernel_whose_products_wait_is_told_from_its_neighbour(tmp_path):
    source = tmp_path / "two.cu"
    source.write_text('extern "C" ' + KERNEL.format("one") + 'extern "C" ' + KERNEL.format("other"))
    binary = compile_source(source, ("one", "other"), "sm_90a", "cubin")
    plain = cubin.resources(binary.code, binary.log)
    assert not any(found.serialized for found in plain.values())
    told = cubin.resources(binary.code, SAYS.format("other") + binary.log)
    assert told["other"].serialized and not told["one"].serialized


def test_what_was_disassembled_is_kept(tmp_path, monkeypatch):
    source = tmp_path / "one.cu"
    source.write_text('extern "C" ' + KERNEL.format("one"))
    binary = compile_source(source, ("one",), "sm_90a", "cubin")
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path))
    look, asked, found = cubin.disassemble, [], []

    def counted(code: bytes) -> str:
        asked.append(code)
        return look(code)

    monkeypatch.setattr(cubin, "disassemble", counted)
    for damaged in (False, False, True):
        if damaged:
            next((tmp_path / "resources").iterdir()).write_text('[{"symbol": 1')
        cubin.resources.cache_clear()
        found.append(cubin.resources(binary.code, binary.log))
    assert found[0] == found[1] == found[2] and found[0]["one"].instructions > 0
    assert len(asked) == 2  # at first, and where the file is damaged


def test_what_is_serialized_is_a_fault():
    rows = [resources.Compiled("gelu", "cuda.x", "forward", "bf16", "sm_90a", "k", 128, 0) for _ in range(2)]
    for row, waits in zip(rows, (True, False), strict=True):
        row.facts = dict(serialized=waits, spill_bytes=0)
    resources._judge(variants.find(variants.discover(), "gelu", "cuda.naive"), rows)
    assert "serialized" in rows[0].fault and not rows[1].fault
