"""Every golden case of every method that leanvit has. One case: `pytest tests/parity -k evit/model_fuse`."""

from __future__ import annotations

import pytest

from leanvit.cards import papers
from parity.cases import Case, check, folder, found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    root = folder(metafunc.config.getoption("--cases"))
    if root is None:
        why = "no golden cases: give --cases DIR, set LEANVIT_PARITY, or put them into ../shared/parity"
        metafunc.parametrize("case", [pytest.param(None, marks=pytest.mark.skip(reason=why), id="none")])
        return
    full_size = {True: pytest.mark.e2e, False: ()}  # models as they were published, counted
    cases = found(root)
    metafunc.parametrize(
        "case", [pytest.param(case, id=case.id, marks=full_size[case.id.endswith("/variants")]) for case in cases]
    )


def test_parity(case: Case) -> None:
    if case.slug not in papers():
        pytest.skip(f"leanvit has no method {case.slug!r}")
    check(case)
