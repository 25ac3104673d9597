"""RAPL: the energy counters of x86 processors (Intel; AMD since Zen), as Linux shows them under /sys/class/powercap.

A package domain counts what the whole processor takes, cores and caches and all programs on it; memory is not in it.
`psys` (the platform) and the `-mmio` duplicates of packages are left out: they would count the same energy twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leanvit.measure.meter import Meter, NoMeter, NotMeasurable

SYSFS = Path("/sys/class/powercap")
# The counter moves about every millisecond: its last step is at most 0.5 % of a sample of this length.
MIN_SECONDS = 0.2


@dataclass
class _Domain:
    """One package: its counter in microjoules, which starts again at zero after `range_uj`."""

    folder: Path
    name: str
    range_uj: int
    last_uj: int
    total_uj: int = 0

    def advance(self) -> int:
        """Microjoules since the first reading. Exact while the counter wraps at most once between two readings
        (a quarter of an hour and more at the power of a processor)."""
        now = _number(self.folder / "energy_uj")
        step = now - self.last_uj
        self.total_uj += step if step >= 0 else step + self.range_uj
        self.last_uj = now
        return self.total_uj


class Rapl(Meter):
    """The sum of all packages, in joules since it was made."""

    min_seconds = MIN_SECONDS
    patience = 0.5

    def __init__(self, domains: list[_Domain]) -> None:
        self._domains = domains
        names = ", ".join(domain.name for domain in domains)
        self.source = f"RAPL counters of {names}: the whole processor with all that runs on it, memory not included"

    def joules(self) -> float:
        return sum(domain.advance() for domain in self._domains) / 1e6


def find_rapl(sysfs: Path = SYSFS) -> Rapl | NoMeter:
    """The machine's packages, or why they cannot be read. One unreadable package makes the sum unreadable."""
    packages = [folder for folder in sorted(sysfs.glob("intel-rapl:*")) if _is_package(folder)]
    if not packages:
        return NoMeter(f"no RAPL package counter under {sysfs} (a virtual machine, a container, or another processor)")
    try:
        return Rapl([_domain(folder) for folder in packages])
    except NotMeasurable as error:
        return NoMeter(str(error))


def _is_package(folder: Path) -> bool:
    try:
        return (folder / "name").read_text().startswith("package")
    except OSError:
        return False


def _domain(folder: Path) -> _Domain:
    name = (folder / "name").read_text().strip()
    return _Domain(folder, name, _number(folder / "max_energy_range_uj"), _number(folder / "energy_uj"))


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except PermissionError:
        raise NotMeasurable(f"no permission to read {file} (Linux lets only root read it by default)") from None
    except (OSError, ValueError) as error:
        raise NotMeasurable(f"{file} cannot be read as a number: {error}") from None
