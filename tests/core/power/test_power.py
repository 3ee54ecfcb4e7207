"""Meters read the files of real kernels, and energy of a frame is what the power and the time make it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import boards
import numpy as np
import pytest

from edgekd.core.errors import SpecError
from edgekd.core.machine_state import PowerMode, Setting, read_moment, read_setting
from edgekd.core.power.energy import MIN_STRETCHES, measure_energy
from edgekd.core.power.find import find_meter
from edgekd.core.power.null import NullMeter
from edgekd.core.power.nvml import find_gpu
from edgekd.core.power.rails import find_rails
from edgekd.core.power.rapl import find_packages
from edgekd.core.power.recorder import Joules, Recorder
from edgekd.deploy.devices.null import NullDevice
from edgekd.hardware.target import load_target


def test_rails_of_a_module_without_an_input_rail_add_up(tmp_path: Path) -> None:
    meter = find_rails(boards.xavier(tmp_path))
    assert meter.read() == pytest.approx(19 * 0.5 + 5 * 0.46)
    assert not meter.counts


@pytest.mark.parametrize(("board", "watts", "rail"), [("orin_nano", 7.5, "VDD_IN"), ("nano", 3.2, "POM_5V_IN")])
def test_an_input_rail_is_the_total_and_the_others_are_part_of_it(
    tmp_path: Path, board: str, watts: float, rail: str
) -> None:
    meter = find_rails(getattr(boards, board)(tmp_path))
    assert meter.read() == pytest.approx(watts)
    assert meter.covers.endswith(f": {rail}")


def test_a_rail_that_another_one_feeds_is_not_counted_twice(tmp_path: Path) -> None:
    meter = find_rails(boards.agx_orin(tmp_path))
    assert meter.read() == pytest.approx(10 + 5 + 5)
    assert meter.covers == "module without carrier board: VDD_CPU_CV + VDD_GPU_SOC + VIN_SYS_5V0"


def test_a_memory_rail_without_the_rail_that_feeds_it_is_counted(tmp_path: Path) -> None:
    root = boards.write(tmp_path, boards.monitor("1-0041", 1, {"GPU": (5000, 200), "VDDQ_VDD2_1V8AO": (5000, 300)}))
    assert find_rails(root).read() == pytest.approx(2.5)


@pytest.mark.parametrize("target", [None, "thor"])
def test_the_input_of_a_thor_is_its_total_in_microwatts(tmp_path: Path, target: str | None) -> None:
    rails = load_target(target).power.rails.value if target else ()
    meter = find_rails(boards.thor(tmp_path), rails)
    assert (meter.read(), meter.name) == (pytest.approx(36.5), "ina238")
    assert meter.covers == "module with carrier board: VIN"


@pytest.mark.parametrize("target", [None, "thor"])
def test_a_thor_on_a_carrier_board_without_a_monitor_has_the_rails_of_its_module(
    tmp_path: Path, target: str | None
) -> None:
    rails = load_target(target).power.rails.value if target else ()
    meter = find_rails(boards.thor(tmp_path, input_microwatts=None), rails)
    assert (meter.read(), meter.name) == (pytest.approx(26), "ina3221")


@pytest.mark.parametrize(
    ("name", "board"),
    [
        ("xavier", "xavier"),
        ("agx-orin", "agx_orin"),
        ("orin-nano", "orin_nano"),
        ("nano", "nano"),
        ("thor", "thor"),
    ],
)
def test_a_target_says_which_rails_count(tmp_path: Path, name: str, board: str) -> None:
    power, root = load_target(name).power, getattr(boards, board)(tmp_path)
    rails, total = power.rails.value, power.total.value if power.total else None
    if board == "orin_nano":  # two of its rails are in the tree, and the total is one of them
        assert find_rails(root, ("VDD_IN", "VDD_CPU_GPU_CV"), "sum").read() == pytest.approx(9.5)
    assert find_rails(root, rails, total).read() == pytest.approx(find_rails(root).read())


def test_rails_that_a_target_names_and_a_board_has_not_are_said(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="VDD_GPU_SOC"):
        find_rails(boards.xavier(tmp_path), ("VDD_GPU_SOC", "GPU"), "sum")


def test_the_cpu_counts_on_when_its_counter_starts_over(tmp_path: Path) -> None:
    meter = find_packages(boards.pc(tmp_path))
    assert meter.counts
    assert meter.read() == 0
    zone = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    zone.write_text("4000000\n")
    assert meter.read() == pytest.approx(3)
    zone.write_text("500000\n")
    assert meter.read() == pytest.approx(4.5)
    zone.unlink()
    with pytest.raises(OSError, match="energy_uj"):
        meter.read()


class Nvml:
    """NVIDIA's library with one GPU; functions that are left out of `answers` are not supported by it."""

    def __init__(self, **answers: int) -> None:
        self.answers = answers

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def __getattr__(self, name: str):
        def function(handle: ctypes.c_void_p, *arguments) -> int:
            if name == "nvmlDeviceGetHandleByIndex_v2":
                return 0
            if name not in self.answers:
                return 3  # NVML_ERROR_NOT_SUPPORTED
            arguments[-1]._obj.value = self.answers[name]
            return 0

        return function


def test_a_gpu_counts_its_energy_or_else_tells_its_power() -> None:
    counts = find_gpu(library=Nvml(nvmlDeviceGetTotalEnergyConsumption=2_500, nvmlDeviceGetTemperature=61))
    assert (counts.counts, counts.read(), counts.temperature_c, counts.clock_mhz) == (True, 2.5, 61, None)
    tells = find_gpu(library=Nvml(nvmlDeviceGetPowerUsage=70_250, nvmlDeviceGetClockInfo=1980))
    assert (tells.counts, tells.read(), tells.clock_mhz) == (False, 70.25, 1980)
    assert find_gpu(library=Nvml()) is None


def test_the_meter_that_tells_most_is_found(tmp_path: Path) -> None:
    assert find_meter(boards.xavier(tmp_path / "a"), gpu=True).name == "ina3221"
    assert find_meter(boards.pc(tmp_path / "b")).name == "rapl"
    assert find_meter(tmp_path / "nothing") is None


def test_clocks_temperature_and_setting_of_a_board(tmp_path: Path) -> None:
    root = boards.xavier(tmp_path)
    now = read_moment(root)
    assert (now.cpu_mhz, now.gpu_mhz, now.temperature_c) == (2265.6, 1377, 52)
    setting = read_setting(root)
    assert setting == Setting(("schedutil",), clocks_locked=True, power_mode=PowerMode(0, "MAXN"))
    (root / "sys/class/devfreq/17000000.gv11b/min_freq").write_text("114750000\n")
    assert read_setting(root).clocks_locked is False
    assert read_setting(tmp_path / "nothing") == Setting((), None, None)
    assert read_moment(tmp_path / "nothing").temperature_c is None


def test_the_area_under_power_is_energy() -> None:
    now = {"s": 0.0}
    joules = Joules(NullMeter(lambda: 10 * now["s"]), lambda: now["s"])  # 0 W, then 10 W more each second
    for second in range(5):
        now["s"] = float(second)
        joules.recorder.sample()
    assert [joules.at(t) for t in (0, 1, 2.5, 4, 9)] == pytest.approx([0, 5, 31.25, 80, 80 + 40 * 5])
    counted = Joules(NullMeter(lambda: 3 * now["s"], counts=True), lambda: now["s"])
    for second in range(3):
        now["s"] = float(second)
        counted.recorder.sample()
    assert [counted.at(t) for t in (0, 0.5, 2)] == pytest.approx([0, 1.5, 6])


def test_a_reading_that_fails_is_left_out_and_one_that_always_fails_is_said() -> None:
    answers = iter([1.0, OSError("gone"), 3.0])

    def read() -> float:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    recorder = Recorder(read, lambda: 0.0, 60)
    for _ in range(3):
        recorder.sample()
    assert recorder.readings == [1.0, 3.0]
    broken = Joules(NullMeter(lambda: float(Path("/nothing/here").read_text())), lambda: 0.0)
    broken.recorder.sample()
    with pytest.raises(OSError, match="does not answer"):
        broken.at(0)


def test_the_recorder_reads_beside_the_work() -> None:
    seen = []
    with Recorder(lambda: len(seen), lambda: 0.0, 0.001) as recorder:
        while len(recorder.readings) < 5:
            seen.append(0)
    assert recorder.readings == sorted(recorder.readings)


@pytest.mark.parametrize("counts", [False, True])
def test_energy_of_a_frame_is_power_times_time_with_and_without_idle(counts: bool) -> None:
    """20 W at rest, 50 W at work, 40 ms a frame: 2000 mJ, of which 1200 mJ are the frame's."""
    device = NullDevice([0.040])
    spent = {"j": 0.0, "s": 0.0, "w": 20.0}

    def read() -> float:
        spent["j"] += spent["w"] * (device.clock() - spent["s"])
        spent["s"] = device.clock()
        return spent["j"] if counts else spent["w"]

    def work() -> None:
        read()
        spent["w"] = 50.0
        device.infer()

    found = measure_energy(NullMeter(read, counts), {"": work}, 8.0, device.clock, device.advance)[""]
    assert found.idle_watts == pytest.approx(20)
    assert found.watts == pytest.approx(50)
    assert (found.gross_mj, found.net_mj) == (pytest.approx(2000), pytest.approx(1200))
    assert found.gross_interval.low <= found.gross_mj <= found.gross_interval.high
    assert found.frames == pytest.approx(8 / 0.040, abs=8)
    assert found.gross_interval == pytest.approx([2000, 2000])


def test_two_kinds_of_work_take_turns_and_an_uneven_sensor_widens_the_interval() -> None:
    device = NullDevice([0.125])
    rng = np.random.default_rng(0)
    meter = NullMeter(lambda: float(rng.uniform(30, 50)))
    order: list[str] = []

    def work(name: str):
        return lambda: (order.append(name), device.infer())

    found = measure_energy(meter, {"a": work("a"), "b": work("b")}, 5.0, device.clock, device.advance)
    assert "".join(order[::9]) == "ab" * MIN_STRETCHES  # eight frames a stretch, and the one before them
    assert found["a"].gross_interval.half > 100
    assert found["a"].net_interval.half > found["a"].gross_interval.half
