"""How a CUDA source launches its kernel: read from the host's functions beside it, of this file or of one near it."""

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.adopt.names import words
from kernels.cuda import cplusplus
from kernels.cuda.cplusplus import Token

CHANGES = re.compile(r"[-+*/%&|^]=|<<=|>>=|\+\+|--")
STEPS = ["+", "+"], ["-", "-"]
MOST_NEIGHBOURS = 50  # files that are looked through for a launch
MOST_FAR = 400  # those further away
MOST_FOLDERS = 400  # that files are looked for in, below one
CALLERS = 3  # of callers, one above the other
USUAL = "256"  # threads, of several numbers that a source tries
OF_A_BLOCK = re.compile(r"(?i)block|thread|tile|warp|^b[rcmnk]$")
CONTRARY = {"!=": "==", "==": "!=", "<": ">=", ">": "<=", "<=": ">", ">=": "<"}
NUMBERS = words("int unsigned long short size_t auto const uint32_t int32_t int64_t uint64_t uint u32 u64 float double")


@dataclass
class Launcher:
    """How the source launches the kernel: C++ of its arguments, and what is defined before, in order."""

    name: str
    grid: list[Token]
    block: list[Token]
    shared: list[Token]
    template: list[list[Token]]
    arguments: list[list[Token]]
    defined: list[tuple[str, list[Token]]] = field(default_factory=list)
    parameters: tuple[str, ...] = ()
    asserted: list[list[Token]] = field(default_factory=list)  # before the launch
    # Of a launch in a switch: what is asked, and for which answers there is a launch.
    cases: list[tuple[list[Token], list[str]]] = field(default_factory=list)
    bound: dict[str, list[Token]] = field(default_factory=dict)  # what its caller gives: template arguments, numbers
    asks: tuple[str, ...] = ()  # its template's parameters that have no default

    def told_apart(self, mine: Token, other: "Launcher", theirs: Token, asked: list[Token]) -> "Launcher":
        """With `asked` where this launch has the number `mine` and the other has `theirs`."""

        def one(here: list[Token], there: list[Token]) -> list[Token]:
            if len(here) != len(there):
                return here
            differ = [(x.text, y.text) == (mine.text, theirs.text) for x, y in zip(here, there, strict=True)]
            return [t for x, d in zip(here, differ, strict=True) for t in (asked if d else [x])]

        def each(here: list[list[Token]], there: list[list[Token]]) -> list[list[Token]]:
            return [one(x, y) for x, y in zip(here, there, strict=True)] if len(here) == len(there) else here

        grid, block, shared = each([self.grid, self.block, self.shared], [other.grid, other.block, other.shared])
        template, arguments = each(self.template, other.template), each(self.arguments, other.arguments)
        return replace(self, grid=grid, block=block, shared=shared, template=template, arguments=arguments)


def launcher_in(unit: cplusplus.Unit, kernel: str) -> Launcher | None:
    """The first `kernel<<<grid, block, shared>>>(…)` of the source, in whatever function or macro it is."""
    launches = any(
        [t.text for t in macro.body[i : i + 2]] == ["<<", "<"]
        for events in unit.events.values()
        for *_, macro in events
        if macro
        for i in range(len(macro.body))
    )
    for expands in (False, True) if launches else (False,):
        for d in unit.declarations:
            if not d.function or (expands and not d.words & unit.events.keys()):
                continue
            tokens = unit.expanded(d.tokens, d.path) if expands else d.tokens
            for i, token in enumerate(tokens):
                found = _launch_at(d.function, tokens, i) if token.text == kernel and token.kind == "word" else None
                if found:
                    before = tokens[:i] if expands else unit.expanded(tokens[:i], d.path)  # a macro may ask, too
                    found = replace(found, asserted=list(_assertions(before)))
                    return _bound_by_caller(unit, _by_case(d.function, tokens, i, found))
    return _handed(unit, kernel)


def _handed(unit: cplusplus.Unit, kernel: str) -> Launcher | None:
    """The launch of a kernel through a pointer: a variable's (`auto f = kernel<64>; f<<<…>>>(…)`), or a parameter's of
    the function that it is handed to (`timed(kernel, grid, x)`), of which the call's arguments are known then."""
    for d in unit.declarations:
        if not d.function or kernel not in d.words or "__global__" in d.function.qualifiers:
            continue
        for i, token in enumerate(d.tokens):
            if token.text != kernel or token.kind != "word":
                continue
            template: list[list[Token]] = []
            if d.tokens[i + 1 : i + 2] and d.tokens[i + 1].text == "<" and (close := template_end(d.tokens, i + 1)):
                template = cplusplus.split_commas(d.tokens[i + 2 : close])
            alias = _named_by(d.tokens, i)
            places = [k for k in range(i + 1, len(d.tokens)) if d.tokens[k].text == alias] if alias else [i]
            for k in places:
                found = _launch_at(d.function, d.tokens, k) or _launch_in_called(unit, d, k)
                if found:
                    found = replace(found, template=template or found.template)
                    found = replace(found, asserted=list(_assertions(unit.expanded(d.tokens[:k], d.path))))
                    return _bound_by_caller(unit, found)
    return None


def _named_by(tokens: Sequence[Token], i: int) -> str:
    """The variable that begins as what stands at `i`; "" of none."""
    if i < 2 or tokens[i - 1].text not in ("=", "&") or (tokens[i - 1].text == "&" and tokens[i - 2].text != "="):
        return ""
    at = i - 1 if tokens[i - 1].text == "=" else i - 2
    begins = max((k for k in range(at) if tokens[k].text in (";", "{", "}")), default=-1) + 1
    pointer = next((k for k in range(begins, at - 2) if [tokens[k].text, tokens[k + 1].text] == ["(", "*"]), None)
    return tokens[at - 1 if pointer is None else pointer + 2].text


def _launch_in_called(unit: cplusplus.Unit, caller: cplusplus.Declaration, i: int) -> Launcher | None:
    """The launch in a function that is given, as one of its arguments, what stands at `i` of its caller."""
    opens, depth = i, 0
    while opens > 0 and depth >= 0 and caller.tokens[opens].text not in (";", "{", "}"):
        opens -= 1
        depth += (caller.tokens[opens].text == ")") - (caller.tokens[opens].text == "(")
    if depth >= 0 or not opens:
        return None
    close = cplusplus.closing(caller.tokens, opens)
    given = cplusplus.split_commas(caller.tokens[opens + 1 : close])
    called = caller.tokens[opens - 1].text
    handed = next((n for n, part in enumerate(given) if any(t is caller.tokens[i] for t in part)), None)
    if handed is None:
        return None
    for d in unit.declarations:
        if not d.function or d.function.name != called or d is caller:
            continue
        names = [_called_in(part) for part in d.function.parameters]
        rest = names[-1] if names and any(t.text == "..." for t in d.function.parameters[-1]) else ""
        if handed >= len(names) or (len(given) != len(names) and not rest):
            continue
        for k, token in enumerate(d.tokens):
            found = _launch_at(d.function, d.tokens, k) if token.text == names[handed] else None
            if not found:
                continue
            own = names[:-1] if rest else names
            told = [(n, list(v)) for n, v in zip(own, given, strict=False) if n and [t.text for t in v] != [n]]
            arguments = [
                x for part in found.arguments
                for x in (given[len(own) :] if rest and [t.text for t in part[:1]] == [rest] else [part])
            ]  # fmt: skip
            put = {n: v for n, v in told if len(v) == 1}  # d_A of the caller's, and M of its own
            arguments = [list(put.get(part[0].text, part)) if len(part) == 1 else part for part in arguments]
            body = next((j for j in range(i) if caller.tokens[j].text == "{"), 0)
            mine = list(_definitions(caller.tokens[body:opens]))
            theirs = (p[-1].text for p in caller.function.parameters if p) if caller.function else ()
            return replace(
                found,
                name=caller.names[0] if caller.names else found.name,
                arguments=arguments,
                defined=[*mine, *told, *found.defined],
                parameters=tuple(theirs),
                asks=(),
            )
    return None


def _called_in(parameter: Sequence[Token]) -> str:
    """A parameter's name; of a pointer to a function too: `void (*f)(int)`."""
    for k in range(len(parameter) - 2):
        if [parameter[k].text, parameter[k + 1].text] == ["(", "*"]:
            return parameter[k + 2].text
    return parameter[-1].text if parameter and parameter[-1].kind == "word" else ""


def _launch_at(function: cplusplus.Function, tokens: Sequence[Token], i: int) -> Launcher | None:
    """The launch whose kernel's name stands at `i`."""
    at, template = i + 1, []
    if at < len(tokens) and tokens[at].text == "<":
        close = template_end(tokens, at)
        if close is None:
            return None
        template = cplusplus.split_commas(tokens[at + 1 : close])
        at = close + 1
    if [t.text for t in tokens[at : at + 2]] != ["<<", "<"]:
        return None
    end = next((j for j in range(at + 2, len(tokens)) if _closes(tokens, j)), None)
    if end is None:
        return None
    where: list[list[Token]] = [*cplusplus.split_commas(tokens[at + 2 : end]), [], [], []]
    opens = end + 3
    arguments = cplusplus.split_commas(tokens[opens + 1 : cplusplus.closing(tokens, opens)])
    body = next((j for j in range(i) if tokens[j].text == "{"), 0)
    texts = [[t.text for t in p] for p in function.template]
    defaults = {
        t[t.index("=") - 1]: list(p[t.index("=") + 1 :])
        for t, p in zip(texts, function.template, strict=True)
        if "=" in t
    }
    return Launcher(
        function.name,
        where[0],
        where[1],
        where[2],
        template,
        arguments,
        list(_definitions(tokens[body:i])),
        tuple(p[-1].text for p in function.parameters if p and p[-1].kind == "word"),
        bound=defaults,
        asks=tuple(p[-1].text for p, t in zip(function.template, texts, strict=True) if p and "=" not in t),
    )


def _case_of(tokens: Sequence[Token], i: int) -> tuple[Token, int] | None:
    """(the label of the case that `i` is in, where the body of its switch begins); None where it is in none."""
    label, depth = None, 0
    for j in range(i - 1, 0, -1):
        text = tokens[j].text
        depth += (text == "}") - (text == "{")
        if depth < 0:  # out of a block
            depth = 0
            if label and _switched(tokens, j):
                return label, j
            label = None if _switched(tokens, j) else label
        elif text == "case" and depth == 0 and label is None and tokens[j + 2].text == ":":
            label = tokens[j + 1]
    return None


def _switched(tokens: Sequence[Token], brace: int) -> list[Token]:
    """What the switch asks whose body begins at `brace`; [] where none does."""
    if brace < 1 or tokens[brace - 1].text != ")":
        return []
    opens = next(
        (j for j in range(brace - 1, 0, -1) if cplusplus.closing(tokens, j) == brace - 1 and tokens[j].text == "("), 0
    )
    return list(tokens[opens:brace]) if opens and tokens[opens - 1].text == "switch" else []


def _by_case(function: cplusplus.Function, tokens: Sequence[Token], i: int, found: Launcher) -> Launcher:
    """A launch in a case of a switch, what it asks in place of the number; two cases tell which that is."""
    case = _case_of(tokens, i)
    if case is None or case[0].kind != "number":
        return found
    label, brace = case
    asked, labels = _switched(tokens, brace), [label]
    end = cplusplus.closing(tokens, brace)
    for j in range(i + 1, end):
        other = _case_of(tokens, j) if tokens[j].text == tokens[i].text else None
        second = (
            _launch_at(function, tokens, j) or _call_at(function, tokens, j) if other and other[1] == brace else None
        )
        if not other or not second or other[0].text in [n.text for n in labels]:
            continue
        if len(labels) == 1:
            found = found.told_apart(label, second, other[0], asked)
        labels.append(other[0])
    return replace(found, cases=[(asked, [n.text for n in labels])])


def _call_at(function: cplusplus.Function, tokens: Sequence[Token], i: int) -> Launcher | None:
    """The call `name<…>(…)` at `i`, seen as a launch without a grid."""
    if i + 1 >= len(tokens) or tokens[i + 1].text != "<":
        return None
    close = template_end(tokens, i + 1)
    if close is None or close + 1 >= len(tokens) or tokens[close + 1].text != "(":
        return None
    template = cplusplus.split_commas(tokens[i + 2 : close])
    return Launcher(function.name, [], [], [], template, [])


def _bound_by_caller(unit: cplusplus.Unit, found: Launcher) -> Launcher:
    """With the launcher's own template arguments, as the first who calls it gives them, and the numbers that it is
    told."""
    for d in unit.declarations:
        if not d.function or found.name == d.function.name or found.name not in d.words:
            continue
        for i, token in enumerate(d.tokens):
            if token.text != found.name:
                continue
            if found.asks and (call := _call_at(d.function, d.tokens, i)):
                call = _by_case(d.function, d.tokens, i, call)
                bound = dict(zip(found.asks, call.template, strict=False))
                told = _numbers_of(unit, d, i, found.parameters)
                return replace(
                    found, bound={**told, **found.bound, **bound}, cases=[*found.cases, *call.cases], asks=()
                )
            if not found.asks and (told := _numbers_of(unit, d, i, found.parameters)):
                return replace(found, bound={**told, **found.bound})
    return found


def _numbers_of(
    unit: cplusplus.Unit, caller: cplusplus.Declaration, i: int, parameters: Sequence[str], further: int = CALLERS
) -> dict[str, list[Token]]:
    """Numbers that the call of a function at `i` of its caller gives, by the function's parameters."""
    tokens = caller.tokens
    opens = next((k for k in range(i, min(i + 60, len(tokens))) if tokens[k].text in ("(", ";")), i)
    if tokens[opens].text != "(":
        return {}
    given = cplusplus.split_commas(tokens[opens + 1 : cplusplus.closing(tokens, opens)])
    if len(given) != len(parameters):
        return {}
    told = {
        n: _number_of(unit, caller, part[0], further)
        for n, part in zip(parameters, given, strict=True)
        if len(part) == 1
    }
    return {name: [number] for name, number in told.items() if number}


def _number_of(unit: cplusplus.Unit, caller: cplusplus.Declaration, given: Token, further: int) -> Token | None:
    """A number that a function gives: one that stands there; of what is called a block or a tile, the one that its
    variable has, or one of those that a loop tries (`sizes[j]`), or what its own caller gives."""
    if given.kind == "number" or not OF_A_BLOCK.search(given.text):
        return given if given.kind == "number" else None
    if made := _assigned(caller.tokens, given.text):
        if len(made) > 1:
            made = _assigned(caller.tokens, made[0].text) if made[1].text == "[" else []
        numbers = [t for t in made if t.kind == "number"]
        return next((t for t in numbers if t.text == USUAL), numbers[0]) if numbers else None
    names = tuple(p[-1].text for p in caller.function.parameters if p) if caller.function else ()
    if given.text not in names or not further:
        return None
    for d in unit.declarations:
        for k, token in enumerate(d.tokens if d.function and d is not caller else ()):
            told = _numbers_of(unit, d, k, names, further - 1) if token.text == caller.names[0] else {}
            if given.text in told:
                return told[given.text][0]
    return None


def _assigned(tokens: Sequence[Token], name: str) -> list[Token]:
    """The value of the first `name = …;` or `name[] = {…};`."""
    for i, token in enumerate(tokens[:-2]):
        if token.text != name:
            continue
        sign = cplusplus.closing(tokens, i + 1) + 1 if tokens[i + 1].text == "[" else i + 1
        if sign < len(tokens) - 1 and tokens[sign].text == "=" and tokens[sign + 1].text != "=":
            end = next((j for j in range(sign, len(tokens)) if tokens[j].text == ";"), len(tokens))
            return list(tokens[sign + 1 : end])
    return []


def _neighbours(source: Path) -> list[Path]:
    """Files in which a launch may be: beside the source, in the folder above, in others below it, or below the one
    above that."""
    here = source.resolve()
    up = here.parent.parent
    near = [p for folder in (here.parent, up) for p in _below(folder, 0)]
    far = [p for folder in (up, up.parent) for p in _below(folder, 2)]
    kinds = (".cu", ".cuh", ".cpp", ".h", ".hpp")
    near, far = ([p for p in found if p.suffix in kinds] for found in (near, far))
    return [path for path in dict.fromkeys([*near[:MOST_NEIGHBOURS], *far[:MOST_FAR]]) if path != here]


def _below(top: Path, depth: int) -> Iterator[Path]:
    """The files in a folder, then those of the folders in it, of so many folders; none of a disk's root, or of what
    cannot be read."""
    waiting = deque([(top, depth)] if top != top.parent else [])
    for _ in range(MOST_FOLDERS):
        if not waiting:
            return
        folder, further = waiting.popleft()
        try:
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
            yield from [Path(e.path) for e in entries if not e.is_symlink() and e.is_file()]
            inner = [e for e in entries if further and not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
        except OSError:  # it may have gone meanwhile
            continue
        waiting += [(Path(e.path), further - 1) for e in inner]


def launcher_near(source: Path, kernel: str) -> Launcher | None:
    """The launch of a kernel whose file has none."""
    launch = re.compile(rf"\b{re.escape(kernel)}\s*(?:<[^;{{}}]*?>)?\s*<<<", re.S)
    named = re.compile(rf"\b{re.escape(kernel)}\b")
    said = {path: text for path in _neighbours(source) if named.search(text := path.read_text(errors="replace"))}
    for path in sorted(said, key=lambda path: not launch.search(said[path])):  # those that launch it by its name first
        if found := launcher_in(cplusplus.read(path, None, [cplusplus.HERE]), kernel):
            return found
    return None


def constants_near(source: Path, names: Sequence[str]) -> dict[str, str]:
    """Numbers that files near a source define by these names, which it leaves to whoever includes it; none of those of
    which two files say other things."""
    found: dict[str, set[str]] = {}
    for path in _neighbours(source) if names else ():
        text = path.read_text(errors="replace")
        for name in names:
            defined = rf"#[ \t]*define[ \t]+{name}[ \t]+(\d+)\s*$|\bconst(?:expr)?\b[^;=\n]*\b{name}\s*=\s*(\d+)\s*;"
            told = re.findall(defined, text, re.M) if name in text else []
            found.setdefault(name, set()).update(one or other for one, other in told)
    return {name: values.pop() for name, values in found.items() if len(values) == 1}


def called_near(source: Path, found: Launcher) -> Launcher:
    """With the template arguments that a caller in another file gives."""
    call = re.compile(rf"\b{re.escape(found.name)}\s*<[^;{{}}<]*?>\s*\(", re.S)
    for path in _neighbours(source) if found.asks else ():
        if call.search(path.read_text(errors="replace")):
            bound = _bound_by_caller(cplusplus.read(path, None, [cplusplus.HERE]), found)
            if not bound.asks:
                return bound
    return found


def _assertions(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """What is inside of every `assert(…)`, and the contrary of what is thrown for: `if (…) throw`."""
    for i, token in enumerate(tokens[:-1]):
        if token.text not in ("assert", "if") or tokens[i + 1].text != "(":
            continue
        close = cplusplus.closing(tokens, i + 1)
        inside = list(tokens[i + 2 : close])
        if token.text == "assert":
            yield inside
        elif "throw" in [t.text for t in tokens[close + 1 : close + 3]]:
            signs = [k for k, t in enumerate(inside) if t.text in CONTRARY]
            if len(signs) == 1 and not {"&&", "||"} & {t.text for t in inside}:
                k = signs[0]
                yield [*inside[:k], inside[k]._replace(text=CONTRARY[inside[k].text]), *inside[k + 1 :]]


def template_end(tokens: Sequence[Token], start: int) -> int | None:
    """Where `<` closes before a `<<<`."""
    depth = 0
    for i in range(start, min(len(tokens), start + 200)):
        text = tokens[i].text
        depth += (text == "<") - (text == ">")
        if text in (";", "{"):
            return None
        if depth == 0:
            return i
    return None


def _closes(tokens: Sequence[Token], j: int) -> bool:
    return [t.text for t in tokens[j : j + 3]] == [">", ">", ">"]


def _definitions(tokens: Sequence[Token]) -> Iterator[tuple[str, list[Token]]]:
    """`name = expression;` and `dim3 name(x, y);` of a body, in order; not of what is, or may be, changed later."""
    texts, i = [t.text for t in tokens], 0
    changed = _changed_in_place(texts) | _changed_perhaps(tokens)
    told = {texts[k + 1]: k for k in range(1, len(texts) - 1) if texts[k] == "&" and texts[k - 1] in ("(", ",")}
    yield from _by_members(tokens)
    yield from _by_occupancy(tokens)
    while i < len(tokens) - 1:
        word, after = tokens[i], tokens[i + 1].text
        if word.kind == "word" and after == "=" and i and tokens[i - 1].text not in (".", "->", "]"):
            end = next((j for j in range(i, len(tokens)) if tokens[j].text == ";"), len(tokens))
            # int a = 1, b = 2;
            further = (j for j in range(i, end - 2) if tokens[j].text == "," and texts[j + 2] == "=")
            end = next((j for j in further if texts[i:j].count("(") == texts[i:j].count(")")), end)
            if word.text not in changed and i > told.get(word.text, 0):  # not what a call is given to change
                yield word.text, list(tokens[i + 2 : end])
            i = end
        elif word.kind == "word" and after in ("(", "{") and _dim3_before(texts, i):
            close = cplusplus.closing(tokens, i + 1)
            if word.text not in changed:
                left, right = Token("sign", "(", 0, 0), Token("sign", ")", 0, 0)
                yield word.text, [Token("word", "dim3", 0, 0), left, *tokens[i + 2 : close], right]
            i = close
        elif word.kind == "word" and after == "{" and i and tokens[i - 1].text in NUMBERS:
            close = cplusplus.closing(tokens, i + 1)
            if word.text not in changed and close > i + 2:
                yield word.text, list(tokens[i + 2 : close])
            i = close
        i += 1


def _by_occupancy(tokens: Sequence[Token]) -> Iterator[tuple[str, list[Token]]]:
    """What the runtime is asked: a block that may be any, blocks that fill the GPU once."""
    usual, one = Token("number", USUAL, 0, 0), Token("number", "1", 0, 0)
    once = Token("word", "multiProcessorCount", 0, 0)
    for i, token in enumerate(tokens[:-1]):
        asked = token.text.startswith("cudaOccupancyMax") and tokens[i + 1].text == "("
        parts = cplusplus.split_commas(tokens[i + 2 : cplusplus.closing(tokens, i + 1)]) if asked else []
        told = [once, usual] if "BlockSize" in token.text else [one]
        yield from ((part[-1].text, [value]) for part, value in zip(parts, told, strict=False) if part)


def _dim3_before(texts: Sequence[str], i: int) -> bool:
    """Whether a name is defined there as a dim3: `dim3 name`, `dim3 const name`, `dim3 other(…), name`."""
    if texts[max(0, i - 1) : i] == ["dim3"] or texts[max(0, i - 2) : i] == ["dim3", "const"]:
        return True
    begins = max((k for k in range(i) if texts[k] in (";", "{", "}")), default=-1) + 1
    before = texts[begins:i]
    return before[:1] == ["dim3"] and before[-1] == "," and before.count("(") == before.count(")")


def _by_members(tokens: Sequence[Token]) -> Iterator[tuple[str, list[Token]]]:
    """`dim3 name;` or `dim3 name(…);` whose members are assigned, under no condition, as `dim3 name(x, y, z)` of what
    they are last."""
    texts = [t.text for t in tokens]
    depths, depth = [], 0
    for text in texts:
        depth += (text == "{") - (text == "}")
        depths.append(depth)
    perhaps = _changed_perhaps(tokens)
    for i, text in enumerate(texts):
        if text != "dim3":
            continue
        end = next((j for j in range(i, len(texts)) if texts[j] == ";"), len(texts))
        for at in range(i + 1, end):
            name, after = texts[at], texts[at + 1 : at + 2]
            made = after in (["("], ["{"]) and _dim3_before(texts, at)
            if tokens[at].kind != "word" or not (made or after in ([","], [";"])) or name in perhaps:
                continue
            begins = cplusplus.split_commas(tokens[at + 2 : cplusplus.closing(tokens, at + 1)]) if made else []
            sets: dict[str, list[Token]] = dict(zip("xyz", map(list, begins), strict=False))
            touched = plainly = 0
            for k in range(end, len(texts) - 4):
                sign = "".join(texts[k + 3 : k + 6])
                if texts[k : k + 2] != [name, "."] or not (sign.startswith("=") or CHANGES.match(sign)):
                    continue
                touched += 1
                if sign.startswith("=") and depths[k] <= depths[i] and texts[k - 1] in (";", "{", "}"):
                    plainly += 1
                    stop = next((j for j in range(k, len(texts)) if texts[j] == ";"), len(texts))
                    sets[texts[k + 2]] = list(tokens[k + 4 : stop])
            if touched and touched == plainly:
                one, comma = [Token("number", "1", 0, 0)], Token("sign", ",", 0, 0)
                x, y, z = (sets.get(m, one) for m in "xyz")
                inside = [*x, comma, *y, comma, *z]
                yield name, [Token("word", "dim3", 0, 0), Token("sign", "(", 0, 0), *inside, Token("sign", ")", 0, 0)]


def _changed_in_place(texts: Sequence[str]) -> set[str]:
    """Names that an operator like `/=` or `++` changes, or a member of theirs, and those whose members are assigned."""
    names = set()
    for i, text in enumerate(texts):
        member = texts[i + 1 : i + 2] == ["."]
        sign = "".join(texts[i + 3 : i + 6] if member else texts[i + 1 : i + 4])
        if CHANGES.match(sign) or (member and re.match("=(?!=)", sign)) or texts[max(0, i - 2) : i] in STEPS:
            names.add(text)
    return names


def _changed_perhaps(tokens: Sequence[Token]) -> set[str]:
    """Names that have a new value after a condition, if it held. One that the last token is still under did."""
    names = set()
    for i, token in enumerate(tokens):
        if token.text not in ("if", "else"):
            continue
        start = i + 1
        if token.text == "if":
            opens = next((k for k in range(i, len(tokens)) if tokens[k].text == "("), len(tokens))
            start = cplusplus.closing(tokens, opens) + 1
        if start < len(tokens) and tokens[start].text == "{":
            end = cplusplus.closing(tokens, start)
        else:
            end = next((k for k in range(start, len(tokens)) if tokens[k].text == ";"), len(tokens))
        for k in range(start, end if end < len(tokens) else start):
            of_its_own = k > start and (tokens[k - 1].kind == "word" or tokens[k - 1].text in (".", "->", "]"))
            if tokens[k].kind == "word" and tokens[k + 1].text == "=" and not of_its_own:
                names.add(tokens[k].text)
    return names
