"""The budgets of the files of tests: what is over one is named, a slower machine is allowed more."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from seconds import SUITES, TABLE, kept_seconds, over_budget, written

KEPT = {
    "calibration": 0.1,
    "any_file": 2.0,
    "slack": 1.5,
    "all": {"test": 20, "e2e": 50},
    "test": {"data/test_slow.py": 6.0},
    "e2e": {"docs/test_pages.py": 30.0},
}


@pytest.mark.parametrize(
    ("spent", "suite", "slower", "over"),
    [
        ({"data/test_slow.py": 8.9, "a.py": 2.9}, "test", 1.0, []),
        ({"data/test_slow.py": 9.1, "a.py": 3.1}, "test", 1.0, ["data/test_slow.py took 9.1", "a.py took 3.1"]),
        ({"data/test_slow.py": 9.1, "a.py": 3.1}, "test", 1.1, []),
        ({"data/test_slow.py": 8.9}, "test", 0.5, []),  # a faster machine is not asked for more
        ({"data/test_slow.py": 8.9}, "e2e", 1.0, ["data/test_slow.py took 8.9"]),
        ({f"{i}.py": 2.5 for i in range(9)}, "test", 1.0, ["all files took 22 s"]),
    ],
)
def test_what_is_over_its_budget_is_named(spent, suite, slower, over) -> None:
    lines = over_budget(spent, KEPT, suite, slower)
    assert len(lines) == len(over) and all(map(str.startswith, lines, over))


def test_what_is_kept_reads_back() -> None:
    table = tomllib.loads(written(KEPT, "test", {"b.py": 7.25, "a.py": 3.0, "quick.py": 0.2}))
    assert table == {**KEPT, "test": {"a.py": 3.0, "b.py": 7.2}}


def test_the_committed_table_names_files_that_are_there_and_fits_its_own_budget() -> None:
    kept = kept_seconds()
    assert [name for name in kept if not (Path(__file__).parent / name).is_file()] == []
    table = tomllib.loads(TABLE.read_text())
    assert all(sum(table[suite].values()) <= table["all"][suite] for suite in SUITES)
