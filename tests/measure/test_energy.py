"""Energy: fake counters whose joules are known, and every way in which a machine has none."""

from __future__ import annotations

import builtins
import io
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

from leanvit.errors import BadInput
from leanvit.measure import Comparison, Meter, NoMeter, compare, find_meter, paired_energy
from leanvit.measure.meter import NotMeasurable
from leanvit.measure.nvml import BoardCounter, SampledPower, meter_of
from leanvit.measure.rapl import find_rapl

RANGE = 262_143_328_850


def zone(root: Path, folder: str, name: str, energy: int = 0) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    for file, value in (("name", name), ("energy_uj", energy), ("max_energy_range_uj", RANGE)):
        (path / file).write_text(f"{value}\n")
    return path


def put(path: Path, energy: int) -> None:
    (path / "energy_uj").write_text(f"{energy}\n")


# --- RAPL -----------------------------------------------------------------------------------------------------------


def test_packages_are_summed_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", "package-0", 500), zone(tmp_path, "intel-rapl:1", "package-1")
    others = [("intel-rapl:0:0", "core"), ("intel-rapl:2", "psys"), ("intel-rapl-mmio:0", "package-0")]
    zones = [zone(tmp_path, *other) for other in others]
    meter = find_rapl(tmp_path)
    assert "package-0, package-1" in meter.source and "memory not included" in meter.source
    assert meter.joules() == 0
    put(first, 2_000_500)
    put(second, 3_000_000)
    for other in zones:
        put(other, 77_000_000)
    assert meter.joules() == pytest.approx(5.0)
    assert meter.joules() == pytest.approx(5.0), "a second look adds nothing"


def test_a_counter_that_starts_again_goes_on(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 1_000_000)
    meter = find_rapl(tmp_path)
    put(package, 2_000_000)
    assert meter.joules() == pytest.approx(3.0)
    put(package, 1_000_000)  # round once more, a microjoule short of a whole turn less 1 J
    assert meter.joules() == pytest.approx(3.0 + (RANGE - 1_000_000) / 1e6)


def test_no_packages_is_said_with_the_place(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "psys")
    for root in (tmp_path, tmp_path / "absent"):
        found = find_rapl(root)
        assert isinstance(found, NoMeter) and f"no RAPL package counter under {root}" in found.reason


def test_one_package_without_permission_refuses_the_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    closed = zone(tmp_path, "intel-rapl:1", "package-1") / "energy_uj"
    opened = io.open

    def guarded(file, *arguments, **keywords):  # chmod does not stop a suite that runs as root
        if Path(file) == closed:
            raise PermissionError(13, "Permission denied")
        return opened(file, *arguments, **keywords)

    monkeypatch.setattr(io, "open", guarded)
    monkeypatch.setattr(builtins, "open", guarded)
    found = find_rapl(tmp_path)
    assert isinstance(found, NoMeter) and f"no permission to read {closed}" in found.reason


@pytest.mark.parametrize("text", ["", "many", "1.5"])
def test_a_counter_that_is_no_number_is_refused(tmp_path: Path, text: str) -> None:
    (zone(tmp_path, "intel-rapl:0", "package-0") / "energy_uj").write_text(text)
    found = find_rapl(tmp_path)
    assert isinstance(found, NoMeter) and "cannot be read as a number" in found.reason


# --- NVML -----------------------------------------------------------------------------------------------------------


class Nvml:
    """The part of pynvml that is asked, for a board with or without an energy counter."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, counter: bool = True, power: bool = True, driver: bool = True) -> None:
        self.counter, self.power, self.driver = counter, power, driver
        self.millijoules, self.milliwatts = 9_000_000, 100_000

    def _give(self, there: bool, value):
        if not there:
            raise self.NVMLError("Not Supported")
        return value

    def nvmlInit(self):
        return self._give(self.driver, None)

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return self._give(uuid == "GPU-1", "handle")

    def nvmlDeviceGetName(self, handle):
        return "A Board"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        return self._give(self.counter, self.millijoules)

    def nvmlDeviceGetPowerUsage(self, handle):
        return self._give(self.power, self.milliwatts)


def test_the_boards_counter_is_read_where_there_is_one() -> None:
    nvml = Nvml()
    meter = meter_of(nvml, "GPU-1")
    assert isinstance(meter, BoardCounter) and "total energy counter of A Board" in meter.source
    before = meter.joules()
    nvml.millijoules += 2500
    assert meter.joules() - before == pytest.approx(2.5)


def test_power_is_integrated_where_there_is_no_counter_and_said_so() -> None:
    nvml = Nvml(counter=False)
    meter = meter_of(nvml, "GPU-1")
    assert isinstance(meter, SampledPower) and "sampled every 20 ms and integrated" in meter.source
    now = SimpleNamespace(s=0.0)
    meter = SampledPower(nvml, "handle", clock=lambda: now.s)
    now.s, nvml.milliwatts = 2.0, 300_000  # 100 W rising to 300 W: 400 J
    assert meter.joules() == pytest.approx(400)
    now.s = 3.0
    assert meter.joules() == pytest.approx(700)


def test_power_is_sampled_between_two_readings() -> None:
    nvml = Nvml(counter=False)
    meter = SampledPower(nvml, "handle")
    meter.open()
    before, start = meter.joules(), time.perf_counter()
    nvml.milliwatts = 1_000_000
    time.sleep(0.3)
    nvml.milliwatts = 0  # two readings alone would take the mean of 100 W and 0 W
    taken, lasted = meter.joules() - before, time.perf_counter() - start
    meter.close()
    assert taken > 600 * lasted


@pytest.mark.parametrize(
    ("nvml", "uuid", "message"),
    [
        (Nvml(driver=False), "GPU-1", "nvmlInit: Not Supported"),
        (Nvml(), "GPU-2", "nvmlDeviceGetHandleByUUID: Not Supported"),
        (Nvml(counter=False, power=False), "GPU-1", "nvmlDeviceGetPowerUsage: Not Supported"),
    ],
)
def test_a_board_that_tells_nothing_is_named(nvml: Nvml, uuid: str, message: str) -> None:
    found = meter_of(nvml, uuid)
    assert isinstance(found, NoMeter) and message in found.reason


def test_a_cuda_device_is_found_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1"))
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    assert isinstance(find_meter("cuda:0"), BoardCounter)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert 'pip install "leanvit[gpu]"' in find_meter("cuda:0").reason


def test_another_device_has_no_counter() -> None:
    assert "device 'mps'" in find_meter("mps").reason


# --- the protocol ---------------------------------------------------------------------------------------------------


class Metered(Meter):
    """Counts 3 J for a call of `dear`, 1 J for a call of `cheap`; idle, 5 mJ a reading."""

    source, min_seconds, patience = "a fake counter", 0.01, 0.05

    def __init__(self) -> None:
        self.total, self.order, self.closed = 0.0, [], False

    def joules(self) -> float:
        self.total += 0.005
        return self.total

    def close(self) -> None:
        self.closed = True

    def runner(self, name: str, joules: float):
        def call(x):
            self.total += joules
            self.order.append(name)
            time.sleep(0.002)
            return torch.zeros(len(x), 5)

        return call


def turns(order: list[str]) -> list[str]:
    return [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]


def test_joules_are_an_image_and_idle_is_apart() -> None:
    meter = Metered()
    runners = {"dear": meter.runner("dear", 3.0), "cheap": meter.runner("cheap", 1.0)}
    found = paired_energy(runners, torch.zeros(4, 1), meter=meter, rounds=3)
    assert found.joules_per_image["dear"].median == pytest.approx(3 / 4, rel=0.01)
    assert found.joules_per_image["cheap"].median == pytest.approx(1 / 4, rel=0.01)
    assert 0 < found.idle_watts.median < 1
    assert (found.source, found.seconds, meter.closed) == ("a fake counter", 0.01, True)
    # Warm-up, then A B, B A, A B: neighbours of one kind are one turn.
    assert turns(meter.order) == ["dear", "cheap"] * 3


class Still(Metered):
    def joules(self) -> float:
        return 0.0


def test_a_counter_that_stands_still_is_no_measurement() -> None:
    meter = Still()
    with pytest.raises(NotMeasurable, match=r"did not move for 0.05 s \(a fake counter\)"):
        paired_energy({"a": lambda x: time.sleep(0.001)}, torch.zeros(1), meter=meter, rounds=3)
    assert meter.closed


@pytest.mark.parametrize(
    ("arguments", "message"), [({"candidates": {}}, "at least one callable"), ({"rounds": 2}, "rounds must be")]
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    accepted = {"candidates": {"a": print}, "x": torch.zeros(1), "meter": Metered()} | arguments
    with pytest.raises(BadInput, match=message):
        paired_energy(**accepted)


# --- in a comparison ------------------------------------------------------------------------------------------------

QUICK = {"rounds": 3, "min_seconds": 1e-4}


def text_of(comparison: Comparison) -> str:
    console = Console(width=400, file=io.StringIO())
    console.print(comparison.table())
    return " ".join(console.file.getvalue().split())


def test_a_comparison_holds_the_joules_of_each_row(batches) -> None:
    meter = Metered()
    runners = {"dear": meter.runner("dear", 3.0), "cheap": meter.runner("cheap", 1.0)}
    payload: list[str] = []
    found = compare(runners, batches, latency_batch=2, meter=meter, progress=payload.append, **QUICK)
    assert [row.joules_per_image.median for row in found.rows] == pytest.approx([1.5, 0.5], rel=0.01)
    assert {row.energy_source for row in found.rows} == {"a fake counter"}
    assert "energy: a fake counter" in payload
    assert Comparison.from_json(found.to_json()) == found
    shown = text_of(found)
    assert "energy [J/image]" in shown and "idle power of the same counter" in shown and "not subtracted" in shown


@pytest.mark.parametrize(
    ("meter", "reason"), [(NoMeter("no counter under /here"), "no counter under /here"), (Still(), "did not move")]
)
def test_what_cannot_be_measured_is_said_and_has_no_figure(batches, meter, reason: str) -> None:
    found = compare({"a": nn.Sequential(nn.Flatten(), nn.Linear(48, 5))}, batches, meter=meter, **QUICK)
    (row,) = found.rows
    assert row.joules_per_image is None and found.idle_watts is None
    assert row.energy_source.startswith("not measurable here: ") and reason in row.energy_source
    shown = text_of(found)
    assert "J/image" not in shown and f"energy: {row.energy_source}" in shown
