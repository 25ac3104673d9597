"""Processor seconds that each file of tests takes, and the budget that it must keep (`seconds.toml`).

`pytest --seconds test` ends with the files that took longest and fails when one is over its budget or when all together
are; `--seconds e2e` does it for the tests marked `e2e`. `--keep-seconds` writes what was measured into the table.

Processor time, of this process and of those it started and waited for, hardly depends on what else the machine does. A
slower machine is allowed more: by how much tells a fixed piece of work, measured at the start and at the end.
"""

from __future__ import annotations

import os
import tomllib
from collections import Counter
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

TABLE = Path(__file__).with_name("seconds.toml")
SUITES = ("test", "e2e")
SHOWN = 10


def processor_seconds() -> float:
    """User and system time of this process, its threads and its children that have ended."""
    return sum(os.times()[:4])


def calibration() -> float:
    """Processor seconds of a fixed piece of work: small products of matrices and plain Python, as the tests do."""
    before = processor_seconds()
    x, total = torch.ones(96, 96), 0
    for step in range(4000):
        x = torch.softmax(x @ x, -1)
        total += sum(range(step % 100))
    return processor_seconds() - before


def over_budget(spent: Mapping[str, float], table: Mapping[str, Any], suite: str, slower: float) -> list[str]:
    """A line for each file over its budget and one for all together; `slower`: this machine over the table's."""
    kept, slack = table[suite], table["slack"] * max(1.0, slower)
    lines = []
    for name, seconds in spent.items():
        budget = max(kept.get(name, 0.0), table["any_file"]) * slack
        if seconds > budget:
            lines.append(f"{name} took {seconds:.1f} s of processor time; its budget here is {budget:.1f} s")
    allowed = table["all"][suite] * max(1.0, slower)
    if sum(spent.values()) > allowed:
        lines.append(f"all files took {sum(spent.values()):.0f} s of processor time; {allowed:.0f} s are allowed here")
    return lines


def written(table: Mapping[str, Any], suite: str, spent: Mapping[str, float]) -> str:
    """The table as text, with the files of `suite` that took more than any file may, as measured."""
    kept = {**table, suite: {name: round(s, 1) for name, s in sorted(spent.items()) if s > table["any_file"]}}
    plain = [f"{key} = {value}" for key, value in kept.items() if not isinstance(value, dict)]
    comments = [line for line in TABLE.read_text().splitlines() if line.startswith("#")]
    parts = ["\n".join([*comments, *plain])]
    for section in ("all", *SUITES):
        parts.append("\n".join([f"[{section}]", *(f'"{name}" = {value}' for name, value in kept[section].items())]))
    return "\n\n".join(parts) + "\n"


def file_of(nodeid: str) -> str:
    """The table's name of a test's file: its path below `tests/`."""
    return nodeid.partition("::")[0].removeprefix("tests/")


def kept_seconds() -> Counter[str]:
    """What the table says of each file, of both suites together."""
    table = tomllib.loads(TABLE.read_text())
    return sum((Counter(table[suite]) for suite in SUITES), Counter())


class Seconds:
    """The plugin: measures in every process, adds up and judges in the one that reports."""

    def __init__(self, config: pytest.Config) -> None:
        self.suite: str | None = config.getoption("--seconds")
        self.keep: bool = config.getoption("--keep-seconds")
        self.reports = not hasattr(config, "workerinput")  # a worker of xdist only measures
        self.spent: Counter[str] = Counter()
        self.calibration: list[float] = []
        self.lines: list[str] = []
        self.mark = processor_seconds()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        if self.suite and self.reports:
            self.calibration.append(min(calibration() for _ in range(3)))

    @staticmethod
    def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
        """Files that take long go to the workers first: at the end one worker would wait for the other."""
        kept = kept_seconds()
        items.sort(key=lambda item: -kept[file_of(item.nodeid)])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self) -> None:
        self.mark = processor_seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        now = processor_seconds()
        elsewhere = self.suite == "test" and item.get_closest_marker("extra") is not None  # counted with `e2e`
        report.processor_seconds = 0.0 if elsewhere else now - self.mark  # type: ignore[attr-defined]
        self.mark = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.spent[file_of(report.nodeid)] += getattr(report, "processor_seconds", 0.0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not (self.suite and self.reports):
            return
        self.calibration.append(min(calibration() for _ in range(3)))
        table = tomllib.loads(TABLE.read_text())
        if self.keep:
            TABLE.write_text(written({**table, "calibration": round(self.slower(1.0), 3)}, self.suite, self.spent))
            return
        self.lines = over_budget(self.spent, table, self.suite, self.slower(table["calibration"]))
        if self.lines and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def slower(self, reference: float) -> float:
        return sum(self.calibration) / len(self.calibration) / reference

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.suite:
            return
        terminalreporter.section("processor seconds")
        for name, seconds in self.spent.most_common(SHOWN):
            terminalreporter.write_line(f"{seconds:7.1f}  {name}")
        terminalreporter.write_line(f"{sum(self.spent.values()):7.1f}  all {len(self.spent)} files")
        for line in self.lines:
            terminalreporter.write_line(f"OVER BUDGET: {line}", red=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", choices=SUITES, help="hold each file to its budget in tests/seconds.toml")
    parser.addoption("--keep-seconds", action="store_true", help="write the measured seconds into tests/seconds.toml")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Seconds(config), "seconds-of-files")
