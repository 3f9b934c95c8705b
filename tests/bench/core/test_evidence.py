"""Evidence is short, and of a compiler's message the cause is what is kept."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.core.evidence import EVIDENCE, bounded, harmless, line_of, one_line, telling


def test_what_a_file_says_steers_no_terminal():
    said = {"a\x1b[31mb": ["\x1b]0;title\x07name", {"deep": "\x9bx"}, 3, None, 0.5]}
    assert harmless(said) == {"ab": ["name", {"deep": "\ufffdx"}, 3, None, 0.5]}


def test_a_short_text_stays_and_a_long_one_says_how_long_it_was():
    assert bounded("two\nlines") == "two\nlines" and one_line("two\n  lines\t") == "two lines"
    cut = bounded("x" * 10_000_000)
    assert cut == "x" * EVIDENCE + " … (10,000,000 characters)"
    assert len(one_line("x \n" * 10_000_000, 100)) < 150


def test_an_exception_without_words_is_told_by_its_type():
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    for say in (bounded, one_line, telling):
        assert "Mute" in say(Mute()) and "RuntimeError" in say(Mute())


def test_the_deepest_line_outside_is_named_without_reading_a_thousand_frames():
    def deeper(n: int) -> None:
        deeper(n + 1)

    try:
        deeper(0)
    except RecursionError as error:
        start = time.process_time()
        assert line_of(error).startswith(f" ({Path(__file__).name} line ")
        assert line_of(error, outside=Path(__file__).parent) != line_of(error)
        assert line_of(error, rather=lambda file: False) == line_of(error)
        assert time.process_time() - start < 0.5


SOURCE = "".join(f"    line{i} = tl.load(x + {i})\n" for i in range(12))


class CompilationError(Exception):
    """As Triton's: the source, a caret, and the cause below it."""


def raised(outer: Exception, inner: Exception | None = None) -> Exception:
    try:
        raise outer from inner
    except Exception as error:
        return error


def test_of_a_triton_error_the_cause_is_kept():
    said = telling(raised(CompilationError(f"at 13:4:\n{SOURCE}    ^\nNameError('y is not defined')")))
    assert said.startswith("NameError('y is not defined') (at 13:4: line11 = ") and len(said) < 200


def test_of_a_triton_error_that_leaves_it_to_another_that_one_is_told():
    inner = CompilationError(f"at 3:8:\n{SOURCE}        ^\nCannot broadcast, the expected size 64, got 32")
    said = telling(raised(CompilationError(f"at 13:4:\n{SOURCE}    ^"), inner))
    assert said.startswith("Cannot broadcast, the expected size 64, got 32 (at 3:8: ")


def test_tritons_own_compiler_is_understood():
    triton = pytest.importorskip("triton")
    errors = triton.compiler.errors
    import ast

    node = ast.parse(SOURCE.replace("    ", "")).body[-1]
    said = telling(raised(errors.CompilationError(SOURCE, node, "at least one is wrong")))
    assert said.startswith("at least one is wrong (at 12:0: ")


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        (
            "In file included from a.cu:1:\ntypes.cuh(3): warning #177-D: variable unused\n\n"
            + 'mine.cu(12): error: identifier "blockidx" is undefined\n      int i = blockidx;\n              ^\n\n'
            + '1 error detected in the compilation of "mine.cu".\n',
            'mine.cu(12): error: identifier "blockidx" is undefined',
        ),
        ("ptxas info : 0 bytes\nptxas fatal   : Unresolved extern function 'foo'\n", "ptxas fatal   : Unresolved"),
        (
            "/usr/bin/ld: a.o: in function `f':\na.cpp:(.text+0x5): undefined reference to `g'\n",
            "undefined reference to `g'",
        ),
        (
            "note\n" * 20_000 + "mine.cpp:3:5: fatal error: nothing.h: No such file or directory\n",
            "fatal error: nothing.h",
        ),
    ],
)
def test_of_a_compilers_message_the_line_with_the_error_is_kept(message, kept):
    said = telling(raised(RuntimeError(message)))
    assert " ".join(kept.split()) in said and "warning" not in said and len(said) < EVIDENCE


def test_the_systems_own_compiler_is_understood(tmp_path):
    source = tmp_path / "mine.cpp"
    source.write_text("#warning one\n" + "static int unused(int);\n" * 5 + "int f() { return nothing_of_this_name; }\n")
    try:
        run = subprocess.run(["g++", "-c", "-o", "/dev/null", source], capture_output=True, text=True)
    except OSError:
        pytest.skip("no g++")
    said = telling(raised(RuntimeError(f"g++ failed:\n{run.stderr}")))
    assert "nothing_of_this_name" in said and "mine.cpp:7" in said and "#warning" not in said


def test_of_any_other_message_the_first_lines_are_kept():
    assert telling(raised(ValueError("one\ntwo\nthree\nfour"))) == "one two three"
    assert telling(raised(ValueError(""))) == ""


@pytest.mark.parametrize("piece", ["^", " ", "error ", "error:\n", "fatal ", "at 1:1:\n ^\n", "a\n", "#a", "internal "])
def test_a_megabyte_of_anything_is_bounded_at_once(piece):
    for head in ("", "at 3:4:\n"):
        start = time.process_time()
        assert len(telling(raised(ValueError(head + piece * (1 << 20))))) < EVIDENCE + 50
        assert time.process_time() - start < 1.0


def test_the_text_modules_load_nothing_heavy():
    code = "import sys, bench.core.process, bench.core.evidence; print({'torch', 'numpy', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
