"""The parameter list of a `__global__` function: it is the contract of a launch.

Names, defaults and overloads are read from the source (cplusplus.py). What a type is that is not C++'s own, a typedef,
a struct, a template's member, the compiler is asked: `question` is C++ behind the source that makes a table of the
parameters' types, and `answer` reads it from the PTX.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kernels.cuda import cplusplus
from kernels.cuda.cplusplus import Declaration, Token

QUALIFIERS = frozenset(("const", "volatile", "register", "__restrict__", "__restrict", "restrict", "__grid_constant__"))
BUILT_IN = frozenset(
    ("void", "bool", "char", "short", "int", "long", "float", "double", "signed", "unsigned", "__int128")
)
ALIASES = {
    "half": "__half",
    "nv_bfloat16": "__nv_bfloat16",
    "uint": "unsigned",
    "ushort": "unsigned short",
    "uchar": "unsigned char",
    "size_t": "unsigned long",
    "std::size_t": "unsigned long",
    "ptrdiff_t": "long",
    "int8_t": "signed char",
    "int16_t": "short",
    "int32_t": "int",
    "int64_t": "long long",
    "uint8_t": "unsigned char",
    "uint16_t": "unsigned short",
    "uint32_t": "unsigned",
    "uint64_t": "unsigned long long",
}
ALIASES |= {f"std::{name}": kind for name, kind in ALIASES.items() if name.endswith("_t") and ":" not in name}


@dataclass(frozen=True)
class Parameter:
    """One parameter: `type` without const, pointer and Many<…>; `many` where it is a list passed by value.

    Of a struct that the compiler was asked for, `fields` has (offset, type) of each scalar in it, and `size` its bytes.
    grid_constant: it is `__grid_constant__`, which a kernel's parameter alone can be.
    """

    name: str
    type: str
    pointer: bool = False
    const: bool = False
    many: bool = False
    size: int = 0
    fields: tuple[tuple[int, str], ...] = ()
    grid_constant: bool = False


@dataclass(frozen=True)
class Signature:
    """A kernel's template parameters, by name, and its parameters.

    types: names of template parameters that are types. defaults: (name, C++) of those that need not be given. name:
    with its namespaces. cast: the types as they are written, where other functions have this name too.
    """

    template: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    types: frozenset[str] = frozenset()
    defaults: tuple[tuple[str, str], ...] = ()
    name: str = ""
    cast: tuple[str, ...] = ()

    def expression(self, values: Sequence[str], given: Mapping[str, str]) -> str:
        """What NVRTC is asked for: the instance with these template arguments. given: the same by name."""
        # a template that is given nothing, because it has a default for everything, is still one
        name = f"{self.name}<{', '.join(values)}>" if values or self.template else self.name
        if not self.cast:
            return name
        types = ", ".join(substituted(text, given) for text in self.cast)
        return f"static_cast<void(*)({types})>({name})"


@dataclass(frozen=True)
class Appended:
    """C++ behind a source. roots: what it names of the source. inlined: a kernel that it calls as a function."""

    text: str
    roots: tuple[str, ...]
    inlined: str = ""


def substituted(text: str, given: Mapping[str, str]) -> str:
    """C++ with names replaced."""
    return re.sub(r"[A-Za-z_]\w*", lambda word: given.get(word[0], word[0]), text)


def arguments_of(entry: str) -> list[str]:
    """The template arguments in `name<float, 64>`; [] of a name alone."""
    _, opened, rest = entry.partition("<")
    inside = list(cplusplus.lex(rest.rpartition(">")[0]))
    return [" ".join(t.text for t in part) for part in cplusplus.split_commas(inside)] if opened and inside else []


def read_signature(source: Path, entry: str, defines: Mapping[str, str] | None = None) -> Signature:
    """The first signature of `entry` in `source`; raises as `read_signatures` does."""
    return read_signatures(source, entry, defines)[0]


def read_signatures(source: Path, entry: str, defines: Mapping[str, str] | None = None) -> list[Signature]:
    """What `entry` takes, an overload each. `entry` may have namespaces in front and template arguments behind it.

    Raises LookupError where there is none, ValueError where one is odd.
    """
    name = entry.partition("<")[0].strip()
    unit = _unit(source, tuple(sorted((defines or {}).items())))
    found = unit.kernels(name)
    if not found:
        known = [d.function.name for d in unit.declarations if d.function and "__global__" in d.function.qualifiers]
        has = f" (it has: {', '.join(dict.fromkeys(known))})" if known else ""
        raise LookupError(f"{source.name} has no __global__ function {name}{has}")
    return [_signature(source, d, several=len(found) > 1) for d in found]


_units: dict[tuple[Path, tuple], tuple[cplusplus.Unit, dict[Path, int]]] = {}  # with when their files were changed


def _unit(source: Path, defines: tuple[tuple[str, str], ...]) -> cplusplus.Unit:
    """A source as it is now; its kernels ask one after the other, and it is read for the first."""
    kept = _units.get((source, defines))
    if kept is None or any(_changed(path) != at for path, at in kept[1].items()):
        unit = cplusplus.read(source, dict(defines), [cplusplus.HERE])
        kept = _units[source, defines] = unit, {path: _changed(path) for path in unit.sources}
    return kept[0]


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1


def _signature(source: Path, d: Declaration, several: bool) -> Signature:
    assert d.function
    names, types, defaults = list[str](), set[str](), list[tuple[str, str]]()
    for tokens in d.function.template:
        texts = [t.text for t in tokens]
        equals = texts.index("=") if "=" in texts else len(texts)
        words = [t.text for t in tokens[:equals] if t.kind == "word"]
        if "..." in texts:
            continue  # a pack takes none, unless the entry gives them
        name = words[-1] if len(words) > 1 else f"#{len(names)}"
        names.append(name)
        if words and words[0] in ("typename", "class"):
            types.add(name)
        if equals < len(texts):
            defaults.append((name, " ".join(texts[equals + 1 :])))
    parameters = [_parameter(source, d.function.name, p, i) for i, p in enumerate(d.function.parameters)]
    cast = tuple(_written(p) for p in d.function.parameters) if several else ()
    qualified = "::".join((*d.scope, d.function.name))
    return Signature(tuple(names), tuple(parameters), frozenset(types), tuple(defaults), qualified, cast)


def _declarator(tokens: Sequence[Token]) -> tuple[list[Token], Token | None, bool]:
    """(the tokens of the type, the name, whether it is an array) of a parameter."""
    texts = [t.text for t in tokens]
    if "=" in texts:
        tokens = tokens[: texts.index("=")]
    kept: list[Token] = []
    i = 0
    array = False
    while i < len(tokens):
        token = tokens[i]
        if token.text == "[":
            end = cplusplus.closing(tokens, i)
            array |= not (i + 1 < len(tokens) and tokens[i + 1].text == "[")  # [[an attribute]]
            i = end + 1
        elif token.text in ("__attribute__", "alignas", "__align__") and i + 1 < len(tokens):
            i = cplusplus.closing(tokens, i + 1) + 1
        else:
            kept.append(token)
            i += 1
    opened = next((i for i, t in enumerate(kept) if t.text == "(" and i and kept[i - 1].text != "decltype"), None)
    if opened is not None:  # float (*rows)[4], a function: a pointer to what has no name here
        inside = kept[opened:]
        name = next((t for t in inside if t.kind == "word"), None)
        return [*kept[:opened], Token("sign", "&" if any(t.text == "&" for t in inside) else "*", 0, 0)], name, False
    last = kept[-1] if kept else None
    before = [t for t in kept[:-1] if t.text not in QUALIFIERS]
    named = (
        last is not None
        and last.kind == "word"
        and last.text not in BUILT_IN | QUALIFIERS
        and any(t.text not in ("struct", "class", "enum", "typename", "union") for t in before)
        and before[-1].text != "::"
    )
    return (kept[:-1], last, array) if named else (kept, None, array)


def _written(tokens: Sequence[Token]) -> str:
    """A parameter's type as C++ has it, for a cast."""
    kind, _, array = _declarator(tokens)
    text = " ".join(t.text for t in kind if t.text not in ("__restrict__", "__restrict", "__grid_constant__"))
    return text + (" *" if array else "")


def _parameter(source: Path, entry: str, tokens: Sequence[Token], number: int) -> Parameter:
    kind, name, array = _declarator(tokens)
    if any(t.text in ("&", "&&") for t in kind):
        written = source.read_text(errors="replace")[tokens[0].start : tokens[-1].end]
        raise ValueError(f"{source.name}: {entry} has a parameter the launcher cannot read: {written!r}")
    texts = [t.text for t in kind]
    bare = [t for t in texts if t not in QUALIFIERS]
    many = bare[:2] == ["Many", "<"] and bare[-1] == ">"
    if many:
        inside = cplusplus.split_commas([t for t in kind if t.text not in QUALIFIERS - {"const"}][2:-1])[0]
        while inside and inside[0].text in ("Many", "<"):
            inside = inside[1:]
        texts = [t.text for t in inside]
    pointer = array or "*" in texts
    # const of what is pointed to: before the last star
    stars = [i for i, t in enumerate(texts) if t == "*"]
    pointee = texts[: stars[-1]] if stars else texts
    const = "const" in (pointee if pointer else texts)
    words = [t for t in pointee if t not in QUALIFIERS]
    fixed = any(t.text == "__grid_constant__" for t in tokens)
    said = name.text if name else f"#{number + 1}"
    return Parameter(said, canonical(words), pointer, const, many, grid_constant=fixed)


def canonical(words: Sequence[str]) -> str:
    """A type's one name: `unsigned` for unsigned int, `long long` for long long int; others as they are written."""
    words = [w for w in words if w not in ("struct", "class", "enum", "union", "typename")]
    if words and all(w in BUILT_IN for w in words):
        rest = [w for w in words if w not in ("signed", "int")]
        if "char" in words:
            return "signed char" if "signed" in words else " ".join(sorted(rest, reverse=True))
        unsigned = ["unsigned"] if "unsigned" in rest else []
        return " ".join([*unsigned, *(w for w in rest if w != "unsigned")]) or "int"
    text = re.sub(r"(?<=\w) (?=\w)", "\0", " ".join(words)).replace(" ", "").replace("\0", " ")
    return ALIASES.get(text, text)


# --- what only the compiler knows ---

TABLE = "layerbench_types_table"
MOST_FIELDS = 12  # of a struct that is passed by value, its structs' own not counted
CLASSES = {
    1: {1: "signed char", 2: "short", 4: "int", 8: "long long"},
    2: {1: "unsigned char", 2: "unsigned short", 4: "unsigned", 8: "unsigned long long"},
    3: {4: "float", 8: "double"},
    4: {1: "bool"},
    5: {2: "__nv_bfloat16"},
    6: {2: "__half"},
}
POINTER, CONST, EMPTY = 16, 32, -1
ASK = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
namespace layerbench_types {
template <class...> struct list {};
template <class T> struct bare { using type = T; static constexpr bool constant = false; };
template <class T> struct bare<const T> { using type = T; static constexpr bool constant = true; };
template <class T> struct bare<volatile T> { using type = T; static constexpr bool constant = false; };
template <class A, class B> constexpr bool same = false;
template <class A> constexpr bool same<A, A> = true;
template <class T, class... A> constexpr bool one_of = (same<T, A> || ...);
struct any { template <class T> constexpr operator T() const noexcept; };
template <class T> T& made() noexcept;
template <class T, class... A> constexpr auto makes(int) -> decltype(T{A{}...}, true) { return true; }
template <class T, class... A> constexpr bool makes(long) { return false; }
template <class T, class... A> constexpr int count() {
    if constexpr (sizeof...(A) > MOST) return -1;
    else if constexpr (makes<T, A..., any>(0)) return count<T, A..., any>();
    else return sizeof...(A);
}
template <int N> struct parts { template <class T> static list<> of(T&); };
PARTS
struct Table { int n; int data[512]; constexpr void put(int x) { if (n < 512) data[n++] = x; } };
template <class T> constexpr int kind() {
    if constexpr (one_of<T, bool>) return 4;
    else if constexpr (one_of<T, char, signed char, short, int, long, long long>) return 1;
    else if constexpr (one_of<T, unsigned char, unsigned short, unsigned, unsigned long, unsigned long long>) return 2;
    else if constexpr (one_of<T, float, double>) return 3;
    else if constexpr (one_of<T, __nv_bfloat16>) return 5;
    else if constexpr (one_of<T, __half>) return 6;
    else if constexpr (__is_enum(T)) return 1;
    else return 0;
}
template <class T> constexpr int size() { return sizeof(T); }
template <> constexpr int size<void>() { return 0; }
template <class T> struct pointee { static constexpr bool is = false; using type = T; };
template <class T> struct pointee<T*> { static constexpr bool is = true; using type = T; };
template <class T> constexpr int code() {
    using U = typename bare<T>::type;
    using P = typename pointee<U>::type;
    using B = typename bare<P>::type;
    return kind<B>() + (pointee<U>::is ? POINTER : 0) + (pointee<U>::is && bare<P>::constant ? CONST : 0);
}
template <class T> constexpr int bytes() {
    if constexpr (pointee<typename bare<T>::type>::is) {
        using B = typename bare<typename pointee<typename bare<T>::type>::type>::type;
        if constexpr (kind<B>() == 0) return 0; else return size<B>();
    } else return size<T>();
}
template <class T> constexpr void put(Table& t);
template <class... A> constexpr void put_all(Table& t, list<A...>) { (put<A>(t), ...); }
template <class T> constexpr void put(Table& t) {
    using U = typename bare<T>::type;
    t.put(code<T>()); t.put(bytes<T>()); t.put(__is_empty(U) ? EMPTY : alignof(T));
    if constexpr (code<T>() == 0 && FIELDS && __is_aggregate(U) && __is_class(U)) {
        constexpr int n = count<U>();
        if constexpr (n > 0) { t.put(n); put_all(t, decltype(parts<n>::of(made<U>())){}); }
        else t.put(0);
    } else t.put(0);
}
template <class... A> constexpr Table of(void (*)(A...)) {
    Table t{}; t.put(int(sizeof...(A))); (put<A>(t), ...); return t;
}
template <class F> struct table;
template <class... A> struct table<void (*)(A...)> {
    static constexpr Table made() { Table t{}; t.put(int(sizeof...(A))); (put<A>(t), ...); return t; }
};
}
extern "C" __device__ const layerbench_types::Table NAME = layerbench_types::table<decltype(EXPRESSION)>::made();
"""


def question(expression: str, fields: bool) -> str:
    """C++ behind a source that makes a table of one kernel's parameters; with structs' fields, or without."""
    parts = ""
    for n in range(1, MOST_FIELDS + 1):
        names = ", ".join(f"x{i}" for i in range(n))
        kinds = ", ".join(f"decltype(x{i})" for i in range(n))
        body = f"{{ auto& [{names}] = s; return list<{kinds}>{{}}; }}"
        parts += f"template <> struct parts<{n}> {{ template <class T> static auto of(T& s) {body} }};\n"
    words = {
        "MOST": MOST_FIELDS,
        "POINTER": POINTER,
        "CONST": CONST,
        "EMPTY": EMPTY,
        "FIELDS": int(fields),
        "NAME": TABLE,
    }
    text = re.sub(rf"\b({'|'.join(words)})\b", lambda found: str(words[found[1]]), ASK)
    pointed = expression if expression.startswith("static_cast") else f"&{expression}"
    return text.replace("PARTS", parts).replace("EXPRESSION", pointed)


def answer(ptx: str, parameters: Sequence[Parameter]) -> tuple[Parameter, ...]:
    """The parameters with the types of the table that is in the PTX. Raises ValueError where it does not fit them."""
    found = re.search(rf"\b{TABLE}\[\d+\]\s*=\s*\{{([^}}]*)\}}", ptx)
    if not found:
        raise ValueError("the compiler's table of types is missing")
    data = bytes(int(x) & 255 for x in found[1].split(","))
    data += bytes(-len(data) % 4)
    numbers = [int.from_bytes(data[i : i + 4], "little", signed=True) for i in range(4, len(data), 4)] + [0] * 64
    if numbers[0] != len(parameters):
        raise ValueError(f"{len(parameters)} parameters were read, the compiler has {numbers[0]}")
    at = 1
    out = []
    for p in parameters:
        (code, size, align, fields), at = _entry(numbers, at)
        if p.many:
            out.append(p)
        elif code & POINTER:
            kind = CLASSES.get(code & 15, {}).get(size, p.type)
            out.append(replace(p, type=kind, pointer=True, const=bool(code & CONST)))
        elif code:
            out.append(replace(p, type=CLASSES[code & 15][size], pointer=False))
        else:
            kind = "empty" if align == EMPTY else "struct"
            out.append(replace(p, type=kind, pointer=False, size=size, fields=tuple(_flat(fields, 0))))
    return tuple(out)


def _entry(numbers: list[int], at: int):
    """One type of the table, its fields' within, and where the next one begins."""
    code, size, align, count = numbers[at : at + 4]
    at += 4
    fields = []
    for _ in range(count):
        field, at = _entry(numbers, at)
        fields.append(field)
    return (code, size, align, fields), at


def _flat(fields: list, start: int):
    """(offset, type) of each scalar, laid out as C does it; "pointer" for a pointer."""
    at = start
    for code, size, align, inner in fields:
        if align == EMPTY:
            align, inner = 1, []
        size = 8 if code & POINTER else size
        at += -at % align
        if code & POINTER:
            yield at, "pointer"
        elif code:
            yield at, CLASSES[code & 15][size]
        else:
            yield from _flat(inner, at)
        at += size


# --- scalars that lie in memory ---

LOADING = """
namespace layerbench_loading {{
template <int i, class A, class... R> struct nth {{ using type = typename nth<i - 1, R...>::type; }};
template <class A, class... R> struct nth<0, A, R...> {{ using type = A; }};
template <class F> struct of;
template <class... A> struct of<void (*)(A...)> {{ template <int i> using at = typename nth<i, A...>::type; }};
using kernel = of<decltype({pointed})>;
}}
extern "C" __global__ {bounds}void {name}({parameters}) {{
{values}    {called}({arguments});
}}
"""


def loading(
    source: Path,
    signature: Signature,
    expression: str,
    name: str,
    loads: Mapping[int, tuple[str, str]],
    given: Mapping[str, str],
) -> Appended:
    """A kernel `name` that reads some of the arguments from memory and then does what `expression` does, as a function.

    loads: by position, the type in memory and C++ of its value `x`.
    """
    parameters, values, arguments = [], "", []
    for i in range(len(signature.parameters)):
        kind = f"layerbench_loading::kernel::at<{i}>"
        arguments.append(f"a{i}")
        if i in loads:
            stored, formula = loads[i]
            parameters.append(f"const {stored}* p{i}")
            values += f"    const {stored} m{i} = *p{i};\n    const {_wide(stored)} v{i} = m{i};\n"
            values += f"    const {kind} a{i} = [](const {_wide(stored)} x) {{ return {formula}; }}(v{i});\n"
        else:
            parameters.append(f"{kind} a{i}")
    pointed = expression if expression.startswith("static_cast") else f"&{expression}"
    called = f"({expression})" if expression.startswith("static_cast") else expression
    unit = cplusplus.read(source, None, [cplusplus.HERE])
    head = [t.text for d in unit.kernels(signature.name)[:1] for t in d.tokens]
    bounds = ""
    if "__launch_bounds__" in head:
        at = head.index("__launch_bounds__")
        depth = 0
        for text in head[at:]:
            bounds += given.get(text, text) + " "
            depth += (text == "(") - (text == ")")
            if text == ")" and depth == 0:
                break
    text = LOADING.format(
        pointed=pointed,
        name=name,
        bounds=bounds,
        parameters=", ".join(parameters),
        values=values,
        called=called,
        arguments=", ".join(arguments),
    )
    roots = tuple(re.findall(r"\w+", expression + bounds))
    return Appended(text, roots, signature.name)


def _wide(stored: str) -> str:
    """What arithmetic is done in."""
    return "float" if stored in ("__half", "__nv_bfloat16") else stored
