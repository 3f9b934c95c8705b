"""Reading PTX: places, scopes, variables, kernels."""

import pytest

from bench.simulate.ptx import Place, PtxError, Statement, parse, split_operands

TEXT = """
.version 8.5
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 dynamic[];
.global .align 4 .u32 table[3] = {1, 2, 3};
/* a comment
   of two lines */
.visible .entry first(.param .u64 .ptr .align 1 p0, .param .align 8 .b8 p1[24])
.maxntid 128, 1, 1
{
.reg .b32 %r<3>; // a comment
.loc 1 7 3
mov.u32 %r1, 5;
.loc 2 9 1, function_name $L__info0, inlined_at 1 8 5
@!%p1 add.s32 %r2, %r1, {%r1, %r2}, [%r1+4];
{ .reg .pred x; mov.pred x, 1; }
LABEL:
ret;
}
.file 1 "/home/someone/first.cu"
.file 2 "/home/someone/helpers.cuh"
"""


def test_a_module():
    module = parse(TEXT)
    assert module.target == "sm_90a"
    assert [(v.name, v.space, v.bytes, v.values) for v in module.variables] == [
        ("dynamic", "shared", 0, ()),
        ("table", "global", 12, ("1", "2", "3")),
    ]
    (kernel,) = module.kernels
    assert [(p.name, p.bytes) for p in kernel.parameters] == [("p0", 8), ("p1", 24)]
    assert kernel.block_limit == (128, 1, 1) and kernel.block_wanted is None
    assert kernel.body.labels() == {"LABEL"} and set(kernel.body.registers) == {"%r0", "%r1", "%r2"}


def test_statements_know_their_lines():
    move, add, inner, leave = parse(TEXT).kernels[0].body.statements()
    assert move.place == Place("first.cu", 7) and move.ptx_line == 14
    assert add == Statement(
        "add.s32", ("%r2", "%r1", "{%r1, %r2}", "[%r1+4]"), Place("helpers.cuh", 9, "first.cu", 8), 16, "%p1", True
    )
    assert str(add.place) == "helpers.cuh:9 (inlined at first.cu:8)"
    assert (inner.opcode, leave.opcode) == ("mov.pred", "ret")


def test_operands():
    assert split_operands("{a, b}, [c, {d, e}], (f, g), h") == ["{a, b}", "[c, {d, e}]", "(f, g)", "h"]
    assert split_operands("") == []


@pytest.mark.parametrize("text", ["garbage", ".visible .entry k()\n{\nret;\n", ".shared .align 4 wrong;"])
def test_what_cannot_be_read_is_an_error(text):
    with pytest.raises(PtxError):
        parse(text)
