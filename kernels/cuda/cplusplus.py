"""C++ as far as a launcher must read it: tokens, the preprocessor's branches and macros, declarations of a file.

    unit = read(Path("softmax.cu"))      its declarations, and those of headers beside it
    unit.kernels("softmax_forward")      the `__global__` functions of that name
    unit.without_host_code(("softmax_forward",))    texts in which what no kernel needs is blank

Bodies are only skipped. What a type is, is the compiler's to say (signature.py asks it).
"""

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


HERE = Path(__file__).parent
LEXEMES = re.compile(
    r"""(?P<blank>\s+|//(?:\\\n|[^\n])*|/\*.*?(?:\*/|\Z)|\\\n)
      |(?P<text>(?:u8|[uUL])?R"(?P<mark>[^()\\\s]{0,16})\(.*?(?:\)(?P=mark)"|\Z)
        |(?:u8|[uUL])?"(?:\\.|[^"\\\n])*"?|(?:u8|[uUL])?'(?:\\.|[^'\\\n])+')
      |(?P<word>[A-Za-z_$]\w*)
      |(?P<number>\.?\d(?:[eEpP][+-]|'(?=\w)|[\w.])*)
      |(?P<sign>::|->|\.\.\.|<<|>=|<=|==|!=|&&|\|\||\#\#|.)""",
    re.S | re.X,
)
DIRECTIVE = re.compile(r"^[ \t]*#[ \t]*(?P<what>\w*)(?P<rest>(?:\\\r?\n|/\*.*?\*/|[^\n])*)", re.M | re.S)
INCLUDED = re.compile(r'\s*(?:"(?P<beside>[^"\n]+)"|<(?P<system>[^>\n]+)>)')
# What NVRTC defines, as far as sources ask for it.
PREDEFINED = {
    **{"__CUDACC__": "1", "__CUDACC_RTC__": "1", "__CUDACC_VER_MAJOR__": "13", "__CUDACC_VER_MINOR__": "0"},
    **{"__CUDA_ARCH__": "900", "__cplusplus": "201703L", "__x86_64__": "1", "__linux__": "1"},
}
OPENS, CLOSES = "([{", ")]}"
# Words with brackets behind them that belong to a function's declaration, and are not its name.
ATTRIBUTES = _words(
    "__launch_bounds__ __attribute__ __declspec alignas __align__ decltype __cluster_dims__ __maxnreg__ __block_size__"
    " noexcept explicit throw"
)
CONDITION = re.compile(r"[\d\s()+\-*/%<>=!&|^~xXa-fA-F]*|.*\b(?:and|or|not)\b.*")
MOST_EXPANSIONS = 20_000  # tokens that a macro's use may become
MOST_FILES = 200
MARK = "\ufeff"


class Token(NamedTuple):
    """A lexeme and where it stands in its file; what a macro made stands where the macro was used."""

    kind: str  # word, number, text, sign
    text: str
    start: int
    end: int


class Macro(NamedTuple):
    parameters: tuple[str, ...] | None  # None: without brackets
    body: tuple[Token, ...]


@dataclass
class Declaration:
    """One declaration at namespace scope. `names`: what it declares, () where that is not known."""

    path: Path
    start: int
    end: int
    scope: tuple[str, ...]
    tokens: tuple[Token, ...]
    names: tuple[str, ...] = ()
    kind: str = ""  # function, type, variable, using, other

    @functools.cached_property
    def function(self) -> "Function | None":
        return _function(self.tokens)

    @functools.cached_property
    def words(self) -> frozenset[str]:
        return frozenset(t.text for t in self.tokens if t.kind == "word")


@dataclass(frozen=True)
class Function:
    """The head of a function. `template` and `parameters` are lists of tokens; `qualifiers` what stands before."""

    name: str
    template: tuple[tuple[Token, ...], ...]
    parameters: tuple[tuple[Token, ...], ...]
    qualifiers: frozenset[str]
    special: bool  # an operator, or a specialisation: f<float>(…)
    full: bool  # it has `template <>` before it


@dataclass
class Source:
    """A file that takes part, and its text; `name` as it was included."""

    path: Path
    text: str
    name: str
    whole: bool = True  # declarations alone are in it; False: a piece of a function, say
    declarations: list[Declaration] = field(default_factory=list)


def lex(text: str, start: int = 0) -> Iterator[Token]:
    for found in LEXEMES.finditer(text):
        kind = found.lastgroup or "sign"
        if found["blank"] is None:
            kind = "text" if found["text"] is not None else kind
            yield Token(kind, found[0], start + found.start(), start + found.end())


# --- the preprocessor ---


def read(path: Path, defines: Mapping[str, str] | None = None, folders: Sequence[Path] = ()) -> "Unit":
    """The declarations of a source, and of the headers that it includes, or they do, from beside it or from `folders`.

    Raises OSError where it cannot be read, UnicodeDecodeError is not raised: bytes that are no UTF-8 are kept.
    """
    unit = Unit([*folders, path.parent])
    for name, value in {**PREDEFINED, **(defines or {})}.items():
        unit.macros[name] = Macro(None, tuple(lex(value)))
    unit.read(path, path.name)
    return unit


class Unit:
    """A source with its headers: what is declared, and the macros at its end."""

    def __init__(self, folders: Sequence[Path] = ()):
        self.folders = folders
        self.macros: dict[str, Macro] = {}  # now, while it is read
        self.events: dict[str, list[tuple[Path, int, Macro | None]]] = {}  # where each was defined and undefined
        self.sources: dict[Path, Source] = {}
        self.beside: set[str] = set()  # headers that are, as they were included
        self.mentioned: dict[str, set[str]] = {}  # words in the bodies of each macro that there ever was
        self.marked = False  # a file begins with a byte order mark, which NVRTC does not take
        self.place = (Path(), 0)  # of the directive that is read

    def macro_at(self, name: str, path: Path, offset: int) -> Macro | None:
        """What a name stood for at a place."""
        seen = [macro for where, at, macro in self.events.get(name, ()) if where != path or at < offset]
        return seen[-1] if seen else None

    @property
    def declarations(self) -> Iterator[Declaration]:
        return (d for source in self.sources.values() for d in source.declarations)

    def kernels(self, name: str) -> list[Declaration]:
        """The `__global__` functions of a name, which may have its namespaces in front; first those with a body."""
        *scope, last = name.split("::")
        found = [
            d
            for d in self.declarations
            if d.function
            and d.function.name == last
            and "__global__" in d.function.qualifiers
            and d.scope[len(d.scope) - len(scope) :] == tuple(scope)
            and not d.function.special
        ]
        return [d for d in found if d.tokens[-1].text == "}"] or found

    def read(self, path: Path, name: str, inside: bool = False) -> None:
        path = path.resolve()
        if path in self.sources or len(self.sources) == MOST_FILES:
            return
        text = path.read_text(errors="surrogateescape")
        self.marked |= text.startswith(MARK)
        source = self.sources[path] = Source(path, text.removeprefix(MARK), name, whole=not inside)
        tokens = self._active(source)
        source.declarations = _declarations(path, tokens, self) if source.whole else []

    def _active(self, source: Source) -> list[Token]:
        """The tokens of the branches that are compiled. Directives are followed, and macros defined."""
        text, tokens, at, depth = source.text, list[Token](), 0, 0
        states: list[tuple[bool, bool]] = []  # of each #if that is open: is it taken now, was one of it taken
        plain = _blanked(text)  # a directive in a comment is none
        for found in DIRECTIVE.finditer(plain):
            if all(now for now, _ in states):
                for token in lex(text[at : found.start()], at):
                    tokens.append(token)
                    depth += (token.text in ("(", "{")) - (token.text in (")", "}"))
            at, self.place = found.end(), (source.path, found.start())
            rest = re.sub(r"\\\r?\n", " ", text[found.start("rest") : found.end("rest")])
            self._directive(source, found["what"], rest, states, tokens)
        if all(now for now, _ in states):
            tokens += lex(text[at:], at)
        return tokens

    def _directive(
        self, source: Source, what: str, rest: str, states: list[tuple[bool, bool]], tokens: list[Token]
    ) -> None:
        live = all(now for now, _ in states)
        if what in ("if", "ifdef", "ifndef"):
            holds = live and self._holds(what, rest)
            states.append((holds, holds))
        elif what in ("elif", "else") and states:
            _, was = states.pop()
            outer = all(now for now, _ in states)
            holds = outer and not was and (what == "else" or self._holds("if", rest))
            states.append((holds, was or holds))
        elif what == "endif" and states:
            states.pop()
        elif not live:
            return
        elif what == "define":
            self._define(rest)
        elif what == "undef":
            self.macros.pop(rest.strip(), None)
            self.events.setdefault(rest.strip(), []).append((*self.place, None))
        elif what in ("include", "include_next", "import"):
            self._include(source, rest, tokens)

    def _define(self, rest: str) -> None:
        found = re.match(r"\s*([A-Za-z_$]\w*)(\(([^)]*)\))?", rest)
        if found:
            names = None if found[2] is None else tuple(n.strip() for n in found[3].split(",") if n.strip())
            body = tuple(lex(rest[found.end() :]))
            self.macros[found[1]] = Macro(names, body)
            self.events.setdefault(found[1], []).append((*self.place, self.macros[found[1]]))
            self.mentioned.setdefault(found[1], set()).update(t.text for t in body if t.kind == "word")

    def _include(self, source: Source, rest: str, tokens: list[Token]) -> None:
        found = INCLUDED.match(rest)
        if not found:
            return
        name = found["beside"] or found["system"]
        for folder in (source.path.parent, *self.folders):
            if (folder / name).is_file():
                # Declarations follow each other; an include in the middle of one brings a piece of it.
                inside = _depth(tokens) > 0
                self.beside.add(name)
                self.read(folder / name, name, inside)
                return

    def _holds(self, what: str, rest: str) -> bool:
        tokens = list(lex(rest))
        if what != "if":
            return bool(tokens) and (tokens[0].text in self.macros) == (what == "ifdef")
        asked: list[Token] = []
        while tokens:
            token = tokens.pop(0)
            if token.text in ("defined", "__has_include") and tokens:
                end = _closing(tokens, 0) if tokens[0].text == "(" else 0
                inside, tokens = tokens[: end + 1], tokens[end + 1 :]
                known = any(t.text in self.macros for t in inside) if token.text == "defined" else False
                asked.append(Token("number", str(int(known)), 0, 0))
            else:
                asked.append(token)
        words = {"&&": " and ", "||": " or ", "!": " not ", "true": "1", "false": "0", "/": "//"}
        told = ""
        for token in self.expanded(asked):
            if token.kind == "number":
                told += re.sub(r"[uUlLzZ']", "", token.text) or "0"
            else:
                told += words.get(token.text, "0" if token.kind == "word" else token.text)
        told = re.sub(r"\b0+(?=\d)", "", told)
        if "?" in told or not CONDITION.fullmatch(told) or len(told) > 2000:
            return False
        try:
            return bool(eval(compile(told.strip() or "0", "#if", "eval"), {"__builtins__": {}}))
        except Exception:
            return False

    def expanded(
        self, tokens: Sequence[Token], path: Path | None = None, hidden: frozenset[str] = frozenset()
    ) -> list[Token]:
        """Tokens with their macros expanded, but those of `hidden` names; all that a macro made stands where it was.

        path: of the file they are in; None for those of a directive that is being read.
        """
        out: list[Token] = []
        i = 0
        while i < len(tokens):
            token = tokens[i]
            macro = None
            if token.kind == "word" and token.text not in hidden:
                name = token.text
                macro = self.macro_at(name, path, token.start) if path else self.macros.get(name)
            i += 1
            if macro is None or (macro.parameters is not None and not (i < len(tokens) and tokens[i].text == "(")):
                out.append(token)
                continue
            given: dict[str, list[Token]] = {}
            end = token.end
            if macro.parameters is not None:
                close = _closing(tokens, i)
                given = _bound(macro.parameters, _split(tokens[i + 1 : close]))
                end = tokens[min(close, len(tokens) - 1)].end
                i = close + 1
            made = [Token(t.kind, t.text, token.start, end) for t in _substituted(macro.body, given)]
            if len(out) + len(made) > MOST_EXPANSIONS:
                return out
            out += self.expanded(made, path, hidden | {token.text})
        return out

    def inline(self, name: str) -> None:
        """Have the kernels of a name be functions for others to call, in texts of the same length."""
        for d in self.kernels(name):
            source = self.sources[d.path]
            tokens = list(d.tokens)
            for i, token in enumerate(tokens):
                if token.text == "{":
                    break
                end = token.end
                if token.text in ("__launch_bounds__", "__cluster_dims__", "__maxnreg__"):
                    end = tokens[_closing(tokens, i + 1)].end
                    made = " " * (end - token.start)
                elif token.text == "__global__" and source.text[token.start : end] == token.text:
                    made = "__device__"
                else:
                    continue
                source.text = source.text[: token.start] + made + source.text[end:]

    # --- what a kernel does not need ---

    def without_host_code(self, names: Iterable[str]) -> dict[str, str] | None:
        """The texts of the source and its headers, by name, in which every declaration is blank that the kernels
        `names` do not mention, and nothing that they mention does; None where there is nothing of the host's to blank.

        Lines stay where they are. A name means everything of that name. What cannot be told stays.
        """
        kept, waiting = set[int](), {part for name in names for part in re.findall(r"\w+", name)}
        reached = set[str]()
        every = list(self.declarations)
        known = {n for d in every for n in d.names}
        device = {n for d in every for n in d.names if d.kind == "function" and not _is_host(d)}
        # A launcher may have the name of what a kernel does mention (cg::reduce), and is explicitly instantiated.
        launching = {n for d in every for n in d.names if _is_host(d) and _launches(d)}
        while waiting:
            word = waiting.pop()
            if word in reached:
                continue
            reached.add(word)
            waiting |= self.mentioned.get(word, set()) - reached
            for d in every:
                if _is_host(d) and device.intersection(d.names):  # a launcher of the kernel's own name
                    continue
                if _launches(d) if _is_host(d) else d.kind == "instantiation" and launching.intersection(d.names):
                    continue
                if id(d) not in kept and (word in d.names or (d.kind == "other" and not d.names)):
                    kept.add(id(d))
                    waiting |= d.words - reached
        # What specialises, or does an operator's work, for something that is not declared here stays too.
        dropped = [d for d in every if id(d) not in kept and not _stays(d, known)]
        if not any(_is_host(d) for d in dropped):
            return None
        opened = [d for d in every if d.kind == "using" and not d.names]
        texts = {}
        for source in self.sources.values():
            text = source.text
            for d in dropped:
                if d.path == source.path and source.whole:
                    text = text[: d.start] + re.sub(r"[^\n]", " ", text[d.start : d.end]) + text[d.end :]
            for d in sorted((d for d in opened if d.path == source.path), key=lambda d: -d.start):
                text = text[: d.start] + _made_sure_of(d) + text[d.start :]
            texts[source.name] = text
        return texts


def _stays(d: Declaration, known: set[str]) -> bool:
    if d.kind == "using" and not d.names:
        return True
    f = d.function
    if f is None:
        return False
    on_device = bool(f.qualifiers & {"__device__", "constexpr"})
    return on_device and f.special and not (f.full and f.name in known)


def _is_host(d: Declaration) -> bool:
    """Whether it is code of the host's, or needs a type of the host's: a function that no device runs, a variable."""
    if d.kind == "function" and d.function:
        return not d.function.qualifiers & {"__global__", "__device__", "constexpr"}
    on_device = {"__device__", "__constant__", "__shared__", "__managed__", "constexpr", "const", "__global__"}
    return d.kind == "variable" and not d.words & on_device


def _launches(d: Declaration) -> bool:
    """Whether a function has a `kernel<<<…>>>(…)` in it."""
    texts = [t.text for t in d.tokens] if d.kind == "function" else []
    return any(a == "<<" and b == "<" for a, b in itertools.pairwise(texts)) and ">>>" in "".join(texts)


def _made_sure_of(d: Declaration) -> str:
    """What has the namespace of `using namespace a::b;` be there, though its header is not."""
    names = [t.text for t in d.tokens if t.kind == "word"][2:]
    if not names or "cooperative_groups" in names or len(names) > 1:
        return ""
    return f"namespace {names[0]} {{}} "


def _depth(tokens: Sequence[Token]) -> int:
    """How many brackets are open that are not a namespace's."""
    stack: list[bool] = []
    for i, token in enumerate(tokens):
        if token.text in ("{", "("):
            before = [t.text for t in tokens[max(0, i - 6) : i]]
            stack.append(token.text == "{" and ("namespace" in before or before[-2:] == ["extern", '"C"']))
        elif token.text in ("}", ")") and stack:
            stack.pop()
    return sum(not namespace for namespace in stack)


def _blanked(text: str) -> str:
    """The text without comments and strings, of the same length and lines."""

    def blank(found: re.Match[str]) -> str:
        keep = found["blank"] is None and found["text"] is None
        return found[0] if keep or found[0].isspace() or found[0].startswith("\\") else re.sub(r"[^\n]", " ", found[0])

    return LEXEMES.sub(blank, text)


def _bound(parameters: tuple[str, ...], arguments: list[list[Token]]) -> dict[str, list[Token]]:
    if parameters and parameters[-1] in ("...", "args..."):
        named, rest = parameters[:-1], arguments[len(parameters) - 1 :]
        joined: list[Token] = []
        for i, argument in enumerate(rest):
            joined += ([Token("sign", ",", 0, 0)] if i else []) + argument
        return {**dict(zip(named, arguments, strict=False)), "__VA_ARGS__": joined}
    return dict(zip(parameters, [*arguments, *[[]] * len(parameters)], strict=False))


def _substituted(body: Sequence[Token], given: Mapping[str, list[Token]]) -> list[Token]:
    out: list[Token] = []
    i = 0
    while i < len(body):
        token = body[i]
        if token.text == "#" and i + 1 < len(body) and body[i + 1].text in given:
            said = " ".join(t.text for t in given[body[i + 1].text])
            out.append(Token("text", '"' + said.replace('"', '\\"') + '"', 0, 0))
            i += 2
            continue
        part = given.get(token.text, [token])
        if token.text == "##" and out and i + 1 < len(body):
            following = given.get(body[i + 1].text, [body[i + 1]])
            first = following[0].text if following else ""
            out[-1] = Token(out[-1].kind, out[-1].text + first, 0, 0)
            out += following[1:]
            i += 2
            continue
        out += part
        i += 1
    return out


# --- declarations ---


def _closing(tokens: Sequence[Token], start: int) -> int:
    """Where the bracket that opens at `start` closes; the last place where it does not."""
    depth = 0
    for i in range(start, len(tokens)):
        text = tokens[i].text
        depth += (text in OPENS) - (text in CLOSES)
        if depth == 0:
            return i
    return len(tokens)


def _angle(tokens: Sequence[Token], start: int) -> int | None:
    """Where the `<` at `start` closes as a template's list; None where it is a comparison."""
    depth, i = 0, start
    while i < len(tokens):
        text = tokens[i].text
        if text in ("(", "["):
            i = _closing(tokens, i)
        elif text in (";", "{", "}", ")", "&&", "||", "<<"):
            return None
        else:
            depth += (text == "<") - (text == ">")
            if depth == 0:
                return i
        i += 1
    return None


def _split(tokens: Sequence[Token]) -> list[list[Token]]:
    """At commas outside of all brackets."""
    parts: list[list[Token]] = [[]]
    i = 0
    while i < len(tokens):
        text = tokens[i].text
        end = i
        if text in OPENS:
            end = min(_closing(tokens, i), len(tokens) - 1)
        elif text == "<" and i and tokens[i - 1].kind == "word":
            end = _angle(tokens, i) or i
        if text == ",":
            parts.append([])
        else:
            parts[-1] += tokens[i : end + 1]
        i = end + 1
    return [p for p in parts if p] if len(parts) == 1 else parts


split_commas, closing = _split, _closing


def _declarations(path: Path, tokens: list[Token], unit: Unit) -> list[Declaration]:
    """Declarations at namespace scope, in order. One that a macro makes is told by what the macro makes of it."""
    out: list[Declaration] = []
    for d in _parted(path, tokens, unit):
        if any(unit.macro_at(t.text, path, t.start) for t in _head(d.tokens) if t.kind == "word"):
            virtual = list(_parted(path, unit.expanded(d.tokens, path), None))
            for each in virtual:
                each.scope = d.scope + each.scope
                each.start, each.end = d.start, d.end
            # one range of text: it stays or goes as a whole, by all names of it
            names = tuple(n for v in virtual for n in _named(v).names)
            if len(virtual) == 1:
                out.append(virtual[0])
            else:
                for v in virtual:
                    v.names = names
                out += virtual or [_named(d)]
        else:
            out.append(_named(d))
    return out


def _head(tokens: Sequence[Token]) -> list[Token]:
    """The tokens outside of braces."""
    out, depth = [], 0
    for token in tokens:
        depth += token.text == "{"
        if depth == 0:
            out.append(token)
        depth -= token.text == "}"
    return out


def _parted(path: Path, tokens: Sequence[Token], unit: "Unit | None") -> Iterator[Declaration]:
    scopes: list[tuple[str, ...]] = []
    i = 0
    while i < len(tokens):
        text = tokens[i].text
        if text == ";":
            i += 1
            continue
        if text == "}":  # of a namespace
            if scopes:
                scopes.pop()
            i += 1
            continue
        if opened := _opened(tokens, i):
            names, i = opened
            scopes.append(names)
            continue
        end = _end(tokens, i, unit.macro_at(text, path, tokens[i].start) if unit else None)
        part = tuple(tokens[i:end])
        yield Declaration(path, part[0].start, part[-1].end, tuple(n for s in scopes for n in s), part)
        i = end


def _opened(tokens: Sequence[Token], i: int) -> tuple[tuple[str, ...], int] | None:
    """Of what opens a scope of namespaces: their names, and where it goes on."""
    texts = [t.text for t in tokens[i : i + 12]]
    if texts[:2] == ["extern", '"C"'] and texts[2:3] == ["{"]:
        return (), i + 3
    at = 1 if texts[0] == "inline" else 0
    if texts[at : at + 1] != ["namespace"]:
        return None
    names: list[str] = []
    for j in range(at + 1, len(texts)):
        if texts[j] == "{":
            return tuple(names), i + j + 1
        if texts[j] in ("=", ";"):
            return None
        if texts[j] not in ("::", "inline"):
            names.append(texts[j])
    return None


def _end(tokens: Sequence[Token], i: int, macro: Macro | None) -> int:
    """Behind the last token of the declaration that begins at i, with what a macro of that name stands for."""
    start = i
    if macro and macro.parameters is not None and i + 1 < len(tokens) and tokens[i + 1].text == "(":
        close = _closing(tokens, i + 1)
        following = tokens[close + 1].text if close + 1 < len(tokens) else ""
        if following not in (";", "{", "*", "&", "::", "=", ",") and any(
            t.text in (";", "{", "__global__", "__device__") for t in macro.body
        ):
            return min(close + 1, len(tokens))  # it makes a whole one
    body_ends = True  # a function's
    while i < len(tokens):
        text = tokens[i].text
        if text == ";":
            return i + 1
        if text == "template" and i + 1 < len(tokens) and tokens[i + 1].text == "<":
            i = (_angle(tokens, i + 1) or i + 1) + 1
            continue
        if text == "operator":  # operator=, operator()
            i += 2
            while i < len(tokens) and tokens[i].text != "(":
                i += 1
            continue
        if text == "=":
            body_ends = False
        if text in ("class", "struct", "union", "enum") and not any(t.text == "(" for t in tokens[start:i]):
            # a type, unless its name begins a function's: struct A f() {…}
            brace = next((j for j in range(i, len(tokens)) if tokens[j].text in ("{", ";", "(", "=")), len(tokens))
            while brace < len(tokens) and tokens[brace].text == "(" and tokens[brace - 1].text in ATTRIBUTES:
                after = _closing(tokens, brace)
                brace = next((j for j in range(after, len(tokens)) if tokens[j].text in ("{", ";", "(", "=")), after)
            body_ends = brace < len(tokens) and tokens[brace].text in ("(", "=")
        if text in ("(", "["):
            i = _closing(tokens, i)
        elif text == "{":
            i = _closing(tokens, i)
            if body_ends:
                return min(i + 1, len(tokens))
        elif text == "}":  # closes a namespace: what stands before it is odd
            return i
        i += 1
    return len(tokens)


def _function(tokens: Sequence[Token]) -> Function | None:
    """The head of a function's declaration; None where it declares something else."""
    template: list[tuple[Token, ...]] = []
    qualifiers: set[str] = set()
    i, full = 0, False
    while i < len(tokens) and tokens[i].text == "template":
        if i + 1 >= len(tokens) or tokens[i + 1].text != "<":
            return None  # an explicit instantiation
        close = _angle(tokens, i + 1)
        if close is None:
            return None
        inside = _split(tokens[i + 2 : close])
        full = not inside
        template += [tuple(p) for p in inside]
        i = close + 1
    while i < len(tokens):
        token = tokens[i]
        text = token.text
        if text in ("=", ";", "{", "typedef", "using"):
            return None
        if text == "operator":
            opens = next((j for j in range(i + 1, len(tokens)) if tokens[j].text == "("), len(tokens))
            if opens + 1 < len(tokens) and opens == i + 1:  # operator()
                opens = _closing(tokens, opens) + 1
            return _with(tokens, "operator", opens, template, qualifiers, True, full)
        if text in ATTRIBUTES and i + 1 < len(tokens) and tokens[i + 1].text == "(":
            qualifiers.add(text)
            i = _closing(tokens, i + 1) + 1
            continue
        if text == "[":
            i = _closing(tokens, i) + 1
            continue
        if text == "<" and i and tokens[i - 1].kind == "word":
            close = _angle(tokens, i)
            if close is None:
                return None
            if close + 1 < len(tokens) and tokens[close + 1].text == "(":
                return _with(tokens, tokens[i - 1].text, close + 1, template, qualifiers, True, full)
            i = close + 1
            continue
        if text == "(":
            if not i or tokens[i - 1].kind != "word" or _points(tokens, i):
                return None
            return _with(tokens, tokens[i - 1].text, i, template, qualifiers, False, full)
        if token.kind == "word":
            qualifiers.add(text)
        i += 1
    return None


def _with(tokens, name, opens, template, qualifiers, special, full) -> Function | None:
    if opens >= len(tokens):
        return None
    close = _closing(tokens, opens)
    parts = _split(tokens[opens + 1 : close])
    if [t.text for p in parts for t in p] == ["void"]:
        parts = []
    return Function(name, tuple(template), tuple(map(tuple, parts)), frozenset(qualifiers - {name}), special, full)


def _named(d: Declaration) -> Declaration:
    """The same with what it declares."""
    texts = [t.text for t in d.tokens]
    first = texts[0]
    if f := d.function:
        d.kind, d.names = "function", (f.name,)
        if f.name == "operator":
            d.names = ()
            d.kind = "function"
        return d
    if first == "using":
        d.kind = "using"
        if texts[1:2] == ["namespace"]:
            return d
        d.names = (texts[1],) if "=" in texts else tuple(t.text for t in d.tokens if t.kind == "word")[-1:]
        return d
    if first == "namespace" and len(texts) > 1:  # an alias
        d.kind, d.names = "using", (texts[1],)
        return d
    if first == "static_assert" or (first == "template" and texts[1:2] != ["<"]):
        d.kind, d.names = ("instantiation", tuple(_instantiated(d))) if first == "template" else ("other", ())
        return d
    body = next((i for i, t in enumerate(d.tokens) if t.text == "{"), None)
    heads = _head(d.tokens)
    kinds = {"class", "struct", "union", "enum"}
    i = 0
    if texts[0] == "template":
        i = (_angle(d.tokens, 1) or 0) + 1
    own = next((j for j in range(i, len(texts)) if texts[j] in kinds), None)
    declared: list[str] = []
    if own is not None and (body is None or own < body) and "=" not in texts[i:own]:
        d.kind = "type"
        j = own + 1
        while j < len(texts):
            if texts[j] in ATTRIBUTES and j + 1 < len(texts) and texts[j + 1] == "(":
                j = _closing(d.tokens, j + 1) + 1
            elif texts[j] in kinds or texts[j] == "final":
                j += 1
            elif d.tokens[j].kind == "word":
                declared.append(texts[j])
                break
            else:
                break
        if "enum" in texts[own : own + 2] and body is not None:
            declared += [t.text for t in d.tokens[body:] if t.kind == "word"]
        if body is not None:
            after = _closing(d.tokens, body) + 1
            declared += [t.text for t in d.tokens[after:] if t.kind == "word"]
        if first == "typedef":
            declared += [t.text for t in heads if t.kind == "word"][-1:]
    elif first == "typedef":
        d.kind = "type"
        words = [k for k, t in enumerate(d.tokens) if t.kind == "word"]
        pointed = next((k for k in words if k > 1 and texts[k - 1] == "*" and texts[k - 2] == "("), None)
        declared = [texts[pointed if pointed is not None else words[-1]]]
    else:
        d.kind, declared = "variable", _variables(d.tokens[i:])
    d.names = tuple(dict.fromkeys(declared))
    if not d.names:
        d.kind = "other"
    return d


def _variables(tokens: Sequence[Token]) -> list[str]:
    """The names that a declaration of variables declares, pointers to functions and arrays among them."""
    plain: list[Token] = []
    k = 0
    while k < len(tokens):
        if tokens[k].text in ATTRIBUTES and tokens[k + 1 : k + 2] and tokens[k + 1].text == "(":
            k = _closing(tokens, k + 1) + 1
        else:
            plain.append(tokens[k])
            k += 1
    names = []
    for k, (token, after) in enumerate(itertools.pairwise(plain)):
        if token.kind != "word":
            continue
        pointed = k > 1 and plain[k - 1].text in ("*", "&") and plain[k - 2].text == "("
        if pointed and after.text in (")", "["):
            names.append(token.text)
            break
        if after.text in ("=", ";", ",", "[", "{") or (after.text == "(" and not _points(plain, k + 1)):
            names.append(token.text)
            if after.text in ("=", "{", "("):
                break
    return names


def _points(tokens: Sequence[Token], opens: int) -> bool:
    """Whether a bracket is that of a pointer's name: the `(` of `int (*f)(int)`."""
    return opens + 1 < len(tokens) and tokens[opens + 1].text in ("*", "&")


def _instantiated(d: Declaration) -> list[str]:
    """Of `template void f<float>(float*);` f, and of `template class A<float>;` A."""
    return [d.tokens[i - 1].text for i in range(1, len(d.tokens)) if d.tokens[i].text == "<"][:1] or ["?"]
