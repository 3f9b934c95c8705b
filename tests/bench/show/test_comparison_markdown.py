"""The comment for a pull request: the verdict first, and nothing that a kernel's author wrote is read as Markdown."""

import numpy as np
import pytest

from bench import compare as command
from tests.compare_runs import Noise, failure, layer_records, write_run

QUIET = Noise(process=0.001, round_=0.001, sample=0.002)


@pytest.fixture
def sides(tmp_path):
    random = np.random.default_rng(1)
    after = layer_records(random, QUIET, 2, slower={"cpu.simd": 0.2})
    after = [r for r in after if r["variant"] != "cpu.naive"]
    after.append(
        {**failure("torch.compile", shape_name="model/0"), "evidence": "</details> | **[x](http://a.b)** @all"}
    )
    return [
        str(write_run(tmp_path / name, records))
        for name, records in (("a", layer_records(random, QUIET, 2)), ("b", after))
    ]


def test_the_comment_says_pass_or_fail_first(sides, tmp_path, monkeypatch):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert command.main([*sides, "--markdown", "--fail-on", "any"]) == 2
    text = (tmp_path / "b" / "compare.md").read_text()
    assert text.startswith("### FAIL: 1 slower, 1 wrong, 1 missing\n") and summary.read_text() == "before\n" + text
    rows = [line for line in text.splitlines() if line.startswith("| gelu")]
    assert all(line.count("|") == 7 for line in rows) and len(rows) == 2 + 4  # what changed, and all
    assert text.count("<details>") == text.count("</details>") and "**[" not in text and "@all" not in text
    assert "cpu.naive: not there" in text and "what change would have been seen" in text
    again = tmp_path / "elsewhere.md"
    assert command.main([*sides, "--markdown", str(again), "--fail-on", "unclear"]) == 0
    assert again.read_text().startswith("### PASS: nothing unclear\n")


def test_a_comment_that_cannot_be_written(sides, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command.main([*sides, "--markdown", str(tmp_path / "file" / "x.md")]) == 3
    assert "error: cannot write" in capsys.readouterr().err
