"""The table of a record's fields is complete: what runs wrote, what tables and the step's CSV show."""

import pytest

from bench import HOME
from bench.records.read import read_records
from bench.records.record import CHECKS, TABLE
from bench.show.columns import COLUMNS
from bench.training import outcome

RUNS = sorted((HOME / "results").glob("**/records.jsonl"))


@pytest.mark.parametrize("file", RUNS, ids=lambda file: str(file.parent.relative_to(HOME / "results")))
def test_every_field_that_a_committed_run_wrote_is_in_the_table(file):
    written = {name for record in read_records(file)[0] for name in record}
    assert written and written <= TABLE.keys()


def test_every_field_says_what_it_is():
    for name, hint in TABLE.items():
        said = [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, str)]
        assert said and said[-1], name


def test_a_check_is_found_however_deep_it_is():
    assert CHECKS["median_s"](1e-3) and not CHECKS["median_s"](0) and not CHECKS["median_s"](10**400)
    assert CHECKS["high_s"](2) and not CHECKS["high_s"](float("inf")), "Annotated[Number | None, …]"
    assert "kernels" not in CHECKS, "a number or a mapping: no reader relies on it"


def test_lists_of_texts_are_checked():
    right = CHECKS["not_supported"]
    assert right([]) and right(["grouped queries"]) and not right("grouped queries") and not right([7])


def test_what_is_shown_are_fields():
    assert {c.name for c in COLUMNS.values()} - {""} <= TABLE.keys()
    assert {name.partition(".")[0] for name in outcome.COLUMNS} <= TABLE.keys()
