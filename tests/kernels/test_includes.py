"""What a source includes is found as the compiler would find it, or more of it; never less."""

import pytest

from kernels.includes import sources


def found(tmp_path, text, **files):
    for name, content in files.items():
        (tmp_path / f"{name}.h").write_text(content)
    source = tmp_path / "kernel.cu"
    source.write_text(text)
    read = sources(source, [tmp_path])
    return {p.stem for p in read.files} - {"kernel"}, read.whole


@pytest.mark.parametrize(
    "line",
    [
        '#include "a.h"',
        "#include <a.h>",
        '  #  include /* of old */ "a.h" // why',
        '#include \\\n "a.h"',
        '%:include "a.h"',
        'const char* s = "/*";\n#include "a.h"\n// */',
        '#if 0\n#include "a.h"\n#endif',
        '#if __has_include("a.h")\n#endif',
        '#inc\\\nlude "a.h"',
    ],
)
def test_an_include_is_found_however_it_is_written(tmp_path, line):
    assert found(tmp_path, line, a="") == ({"a"}, True)


def test_headers_of_headers_are_followed_and_circles_end(tmp_path):
    names, whole = found(tmp_path, '#include "a.h"', a='#include "b.h"', b='#include "a.h"\n#include <c.h>', c="")
    assert names == {"a", "b", "c"} and whole


@pytest.mark.parametrize("line", ["#define A <a.h>\n#include A", "#include PICK(a)", 'asm(".incbin \\"a.h\\"");'])
def test_what_cannot_be_known_is_said(tmp_path, line):
    assert not found(tmp_path, line, a="")[1]


def test_a_comment_on_includes_is_none(tmp_path):
    assert found(tmp_path, "// what we #include is ours") == (set(), True)


def test_a_header_that_appears_or_changes_shows_and_a_toolkit_does_not(tmp_path):
    (kit := tmp_path / "kit").mkdir()
    (kit / "bf16.h").write_text("1")
    source = tmp_path / "kernel.cu"
    source.write_text('#include "later.h"\n#include <bf16.h>\n')

    def digest():
        return sources(source, [kit], [kit]).digest

    first = digest()
    (kit / "bf16.h").write_text("2")
    assert digest() == first
    (tmp_path / "later.h").write_text("1")
    second = digest()
    (tmp_path / "later.h").write_text("2")
    assert len({first, second, digest()}) == 3
