"""cuBLASLt without a GPU: what a call describes is read back, and computed in fp64 on the tensors' own memory.

    with cublaslt.use(StandIn(Double()).library()) as …

Two parts. `Double` or `Real` keep descriptions: the first in a dictionary, set and get alone, the second by the real
library, which needs no driver for that. `StandIn` takes the place of the four functions that need one (create,
heuristic, algorithm, product): it asks for all that was set, refuses what the header forbids, and multiplies. All
calls go through C prototypes of its own and by numbers of its own, from cublasLt.h and not from the binding: a wrong
one there is wrong here. It proves logic; not what a card supports, nor accuracy, nor speed.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.utils._python_dispatch import _disable_current_modes

from kernels.cuda import cublaslt
from reference.gelu import gelu, gelu_grad

SUCCESS, INVALID, FAILED, NOT_SUPPORTED = 0, 7, 13, 15
DTYPE = {0: torch.float32, 2: torch.float16, 14: torch.bfloat16}
# kind: name: (number, bytes, default)
ATTRIBUTES: dict[str, dict[str, tuple[int, int, int]]] = {
    "MatmulDesc": {
        **{"compute": (0, 4, 68), "scale": (1, 4, 0), "pointers": (2, 4, 0), "ta": (3, 4, 0), "tb": (4, 4, 0)},
        **{"tc": (5, 4, 0), "fill": (6, 4, 2), "epilogue": (7, 4, 1), "bias": (8, 8, 0), "aux": (11, 8, 0)},
        **{"aux_ld": (12, 8, 0), "aux_type": (22, 4, -1), "bias_type": (26, 4, -1)},
    },
    "MatrixLayout": {
        **{"type": (0, 4, 0), "order": (1, 4, 0), "rows": (2, 8, 0), "columns": (3, 8, 0), "ld": (4, 8, 0)},
        "batches": (5, 4, 1),
    },
    "MatmulPreference": {
        **{"mode": (0, 4, 0), "workspace": (1, 8, 0), "reductions": (3, 4, 7), "a": (5, 4, 256), "b": (6, 4, 256)},
        **{"c": (7, 4, 256), "d": (8, 4, 256), "waves": (9, 4, 0)},
    },
}
ADDRESSES = ("bias", "aux", "workspace")
PLAIN, BIAS, GELU_AUX_BIAS, DGELU, BGRADB = 1, 4, 4 | 32 | 128, 64 | 128, 512
NEEDS = 1 << 12  # bytes of workspace that an algorithm says it needs; it fills them with NaN
GIVEN, OF_AN_ALGORITHM = 3, 0x5EED  # algorithms that the heuristic knows, and what theirs begins with
REFUSED = "an algorithm that was found does not run"
CONFIGURED = {0: 4, 1: 4, 2: 4, 3: 4, 4: 4, 5: 4, 6: 4, 7: 2, 8: 2}  # bytes of an algorithm's attributes

i32, p, size_t = ctypes.c_int32, ctypes.c_void_p, ctypes.c_size_t
SETTER = ctypes.CFUNCTYPE(i32, p, i32, p, size_t)
GETTER = ctypes.CFUNCTYPE(i32, p, i32, p, size_t, p)


def address_of(function: object) -> int:
    return ctypes.cast(function, p).value or 0  # type: ignore[arg-type]


def write(address: int, value: int, size: int) -> None:
    ctypes.memmove(address, (value & (1 << 8 * size) - 1).to_bytes(size, "little"), size)


class Descriptions(Protocol):
    """Who keeps what is set."""

    def address(self, name: str) -> int:
        """Of a function of the library."""

    def get(self, kind: str, thing: int, number: int, size: int) -> tuple[int, bytes]:
        """Status and value of an attribute."""


class Real:
    """The library itself, as NVIDIA's package has it."""

    def __init__(self, path: str):
        self.library = ctypes.CDLL(path)

    def address(self, name: str) -> int:
        return address_of(getattr(self.library, name))

    def get(self, kind: str, thing: int, number: int, size: int) -> tuple[int, bytes]:
        buffer, written = ctypes.create_string_buffer(64), size_t()
        getter = GETTER(self.address(f"cublasLt{kind}GetAttribute"))
        status = getter(thing, number, ctypes.addressof(buffer), size, ctypes.addressof(written))
        return status, buffer.raw[:size]


class Double:
    """The same of a dictionary: descriptions with the library's sizes and defaults, and nothing else."""

    def __init__(self) -> None:
        self.things: dict[int, tuple[str, dict[int, bytes]]] = {}
        self.alive: list[object] = []  # handles, whose addresses name things; functions
        self.functions: dict[str, int] = {}
        self._offer("cublasLtMatmulDescCreate", (p, i32, i32), self._description)
        self._offer("cublasLtMatrixLayoutCreate", (p, i32, *(ctypes.c_uint64,) * 2, ctypes.c_int64), self._layout)
        self._offer("cublasLtMatmulPreferenceCreate", (p,), lambda to: self._made("MatmulPreference", to))
        self._offer("cublasLtMatmulPreferenceDestroy", (p,), self._destroy)
        for kind in ATTRIBUTES:
            self._offer(f"cublasLt{kind}SetAttribute", (p, i32, p, size_t), self._setter(kind))

    def _offer(self, name: str, types: tuple[type, ...], function: Callable[..., int]) -> None:
        self.alive.append(made := ctypes.CFUNCTYPE(i32, *types)(function))
        self.functions[name] = address_of(made)

    def address(self, name: str) -> int:
        return self.functions[name]

    def _made(self, kind: str, to: int, **given: int) -> int:
        self.alive.append(handle := ctypes.c_uint64())
        told = {name: default for name, (_, _, default) in ATTRIBUTES[kind].items()} | given
        values = {ATTRIBUTES[kind][n]: v for n, v in told.items()}
        self.things[ctypes.addressof(handle)] = (
            kind,
            {number: (v & (1 << 8 * size) - 1).to_bytes(size, "little") for (number, size, _), v in values.items()},
        )
        write(to, ctypes.addressof(handle), 8)
        return SUCCESS

    def _description(self, to: int, compute: int, scale: int) -> int:
        return self._made("MatmulDesc", to, compute=compute, scale=scale)

    def _layout(self, to: int, dtype: int, rows: int, columns: int, ld: int) -> int:
        return self._made("MatrixLayout", to, type=dtype, rows=rows, columns=columns, ld=ld)

    def _destroy(self, thing: int) -> int:
        self.things.pop(thing)
        return SUCCESS

    def _setter(self, kind: str) -> Callable[..., int]:
        def put(thing: int, number: int, value: int, size: int) -> int:
            values = self.things[thing][1] if self.things.get(thing, ("",))[0] == kind else {}
            if number not in values or len(values[number]) != size:
                return INVALID
            values[number] = ctypes.string_at(value, size)
            return SUCCESS

        return put

    def get(self, kind: str, thing: int, number: int, size: int) -> tuple[int, bytes]:
        found = self.things.get(thing, ("", {}))
        values = found[1] if found[0] == kind else {}
        if number not in values or len(values[number]) != size:
            return INVALID, bytes(size)
        return SUCCESS, values[number]


@dataclass
class StandIn:
    """What needs a driver, over descriptions that somebody keeps.

    has: epilogues that are supported. memory: (begin, end) of what a call may touch; none: anything.
    """

    keeps: Descriptions
    has: frozenset[int] = frozenset((PLAIN, BIAS, GELU_AUX_BIAS, DGELU, BGRADB))
    memory: list[tuple[int, int]] = field(default_factory=list)
    kept: list[object] = field(default_factory=list)  # what earlier calls had, so that later ones are elsewhere
    computes: bool = True  # without it a product is accepted, and nothing happens
    fails: frozenset[int] = frozenset()  # algorithms that refuse to run, although they were found
    launched: list[dict] = field(default_factory=list)  # the descriptions of products, with "stream" and "algorithm"
    searches: int = 0
    why: str = ""  # the last refusal

    def __post_init__(self) -> None:
        self.promised: dict[int, dict[str, int]] = {}  # by a description: the preference it was searched with
        replaced: dict[str, tuple[tuple[type, ...], Callable[..., int]]] = {
            "cublasLtCreate": ((p,), self._create),
            "cublasLtMatmulAlgoGetHeuristic": ((*(p,) * 7, i32, p, p), self._heuristic),
            "cublasLtMatmulAlgoConfigGetAttribute": ((p, i32, p, size_t, p), self._algorithm),
            "cublasLtMatmul": ((*(p,) * 14, size_t, p), self._product),
        }
        self.replaced = {name: ctypes.CFUNCTYPE(i32, *types)(f) for name, (types, f) in replaced.items()}

    def library(self) -> cublaslt.Library:
        def address(name: str) -> int:
            return address_of(self.replaced[name]) if name in self.replaced else self.keeps.address(name)

        return cublaslt.Library(address, on_cpu=True)

    def read(self, kind: str, thing: int) -> dict[str, int]:
        found = {}
        for name, (number, size, _) in ATTRIBUTES[kind].items():
            status, value = self.keeps.get(kind, thing, number, size)
            assert status == SUCCESS, (kind, name, status)
            found[name] = int.from_bytes(value, "little", signed=name not in ADDRESSES)
        return found

    # --- the functions ---

    def _create(self, to: int) -> int:
        write(to, 1, 8)
        return SUCCESS

    def _heuristic(self, handle, description, a, b, c, d, preference, most, found, count) -> int:
        self.searches += 1
        told, layouts = self.read("MatmulDesc", description), [self.read("MatrixLayout", x) for x in (a, b, c, d)]
        wants = self.read("MatmulPreference", preference)
        status, self.why = refused(told, layouts, self.has)
        if not status and wants["workspace"] < NEEDS:
            status, self.why = NOT_SUPPORTED, "too little workspace"
        if not status and wants["reductions"] & 1:
            status, self.why = INVALID, "sums that are added in place, in no order"
        if status:
            return status
        self.promised[description] = wants
        results = (cublaslt.Found * most).from_address(found)
        for i in range(given := min(GIVEN, most)):
            results[i].algorithm[0], results[i].algorithm[1] = OF_AN_ALGORITHM, i
            results[i].algorithm[2], results[i].workspace = description, NEEDS
        write(count, given, 4)
        return SUCCESS

    def _algorithm(self, algorithm, attribute, value, size, written) -> int:
        if size != CONFIGURED[attribute] or ctypes.c_uint64.from_address(algorithm).value != OF_AN_ALGORITHM:
            return INVALID
        write(value, ctypes.c_uint64.from_address(algorithm + 8).value, size)
        return SUCCESS

    def _product(self, *arguments: int | None) -> int:
        try:
            with _disable_current_modes():
                self.why = self._multiply(*(argument or 0 for argument in arguments))
        except Exception as error:  # nothing may leave a function that C calls
            self.why = f"{type(error).__name__}: {error}"
        return NOT_SUPPORTED if self.why == REFUSED else FAILED if self.why else SUCCESS

    def _multiply(self, handle, desc, alpha, a, A, b, B, beta, c, C, d, D, algorithm, workspace, size, stream) -> str:
        """Do it; why not, or ""."""
        told, layouts = self.read("MatmulDesc", desc), [self.read("MatrixLayout", x) for x in (A, B, C, D)]
        words = [ctypes.c_uint64.from_address(algorithm + 8 * i).value for i in range(3)]
        self.launched.append(told | {"stream": stream, "algorithm": words[1], "workspace": workspace})
        if words[1] in self.fails:
            return REFUSED
        if not self.computes:
            return ""
        status, why = refused(told, layouts, self.has)
        promised = self.promised.get(desc)
        if status:
            return why
        if promised is None or words[0] != OF_AN_ALGORITHM or words[2] != desc:
            return "an algorithm that was found for another product"
        if c != d:
            return "C is not D"
        if any(address % promised[name] for name, address in zip("abcd", (a, b, c, d), strict=True)):
            return "less aligned than was promised"
        if workspace % 256 or size < NEEDS or not workspace:
            return "a workspace that is too small or not aligned"
        self._touch(workspace, size)
        ctypes.memset(workspace, 0xFF, size)
        self._compute(told, layouts, (a, b, d), *(ctypes.c_float.from_address(x).value for x in (alpha, beta)))
        return ""

    def _compute(self, told: dict, layouts: list[dict], at: tuple[int, int, int], alpha: float, beta: float) -> None:
        of_a, of_b, _, of_d = layouts
        A, B, D = (self._matrix(address, x) for address, x in zip(at, (of_a, of_b, of_d), strict=True))
        op_a, op_b = (x.double().T if told[t] else x.double() for x, t in ((A, "ta"), (B, "tb")))
        sums, epilogue = alpha * (op_a @ op_b), told["epilogue"]
        if beta:
            sums += beta * D.double()
        if epilogue in (BIAS, GELU_AUX_BIAS):
            sums += self._vector(told["bias"], D.shape[0], D.dtype).double()[:, None]
        if epilogue & 128:  # laid out as D, with a leading dimension of its own
            aux = self._matrix(told["aux"], of_d | {"ld": told["aux_ld"]})
            if epilogue == DGELU:
                sums *= gelu_grad(aux.double())
            else:
                aux.copy_(sums)
                sums = gelu(sums)
        if epilogue == BGRADB:  # one sum a column of D, over the inner dimension; beta is of D alone
            self._vector(told["bias"], D.shape[1], D.dtype).copy_(op_b.sum(0))
        D.copy_(sums)

    # --- memory ---

    def _touch(self, address: int, size: int) -> None:
        if self.memory and not any(begin <= address and address + size <= end for begin, end in self.memory):
            raise ValueError(f"{size} bytes that are no part of the call's tensors")

    def _vector(self, address: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        self._touch(address, count * dtype.itemsize)
        memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
        return torch.frombuffer(memory, dtype=dtype, count=count)

    def _matrix(self, address: int, layout: dict) -> torch.Tensor:
        """A column-major matrix where it lies."""
        rows, columns, ld = layout["rows"], layout["columns"], layout["ld"]
        flat = self._vector(address, (columns - 1) * ld + rows, DTYPE[layout["type"]])
        return flat.as_strided((rows, columns), (1, ld))


def refused(told: dict, layouts: list[dict], has: frozenset[int]) -> tuple[int, str]:
    """What the header says of the operations that are used: a status and why; 0 where all is well."""
    A, B, C, D = layouts
    m, k = (A["columns"], A["rows"]) if told["ta"] else (A["rows"], A["columns"])
    inner, n = (B["columns"], B["rows"]) if told["tb"] else (B["rows"], B["columns"])
    epilogue = told["epilogue"]
    malformed = {
        "sizes": (D["rows"], D["columns"]) != (m, n) or k != inner or C != D,
        "leading dimensions": any(x["ld"] < x["rows"] or x["order"] or x["batches"] != 1 for x in layouts),
        "types": len({x["type"] for x in layouts}) != 1 or D["type"] not in DTYPE,
        "arithmetic": (told["compute"], told["scale"]) != (68, 0),
        "modes": told["tc"] != 0 or told["pointers"] != 0 or told["fill"] != 2 or {told["ta"], told["tb"]} - {0, 1},
    }
    if wrong := [name for name, is_so in malformed.items() if is_so]:
        return INVALID, f"malformed: {', '.join(wrong)}"
    takes_bias, takes_aux = epilogue & (4 | 16 | 256 | 512), epilogue & 128
    lacking = {
        f"epilogue {epilogue}": epilogue not in has,
        "bias": takes_bias and (not told["bias"] or told["bias_type"] not in (-1, D["type"])),
        "the auxiliary matrix": takes_aux
        and (not told["aux"] or told["aux"] % 16 or told["aux_ld"] % 8 or told["aux_ld"] < D["rows"] or k == 1),
    }
    if wrong := [name for name, is_so in lacking.items() if is_so]:
        return NOT_SUPPORTED, f"not supported: {', '.join(wrong)}"
    return SUCCESS, ""
