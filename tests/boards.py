"""Fake sysfs trees of Jetsons and PCs, with their files for power, clocks and temperatures."""

from __future__ import annotations

from pathlib import Path


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def monitor(address: str, hwmon: int, rails: dict[str, tuple[int, int]]) -> dict[str, object]:
    """Return the files of an INA3221 by the kernel's driver: mV and mA of up to three rails, and the sum of shunts."""
    base = f"sys/bus/i2c/drivers/ina3221/{address}/hwmon/hwmon{hwmon}"
    files: dict[str, object] = {f"{base}/name": "ina3221", f"{base}/in7_label": "sum of shunt voltages"}
    for number, (name, (mv, ma)) in enumerate(rails.items(), 1):
        files[f"{base}/in{number}_label"] = name
        files.update({f"{base}/in{number}_input": mv, f"{base}/curr{number}_input": ma})
        files[f"{base}/in{number + 3}_input"] = 40  # the shunt's own voltage, without a label
    return {**files, f"{base}/in7_input": 120}


def xavier(root: Path) -> Path:
    """AGX Xavier on JetPack 5: two monitors with six parallel rails; 11.8 W in total."""
    first = {"GPU": (19000, 200), "CPU": (19000, 100), "SOC": (19000, 100)}
    second = {"CV": (19000, 0), "VDDRQ": (19000, 100), "SYS5V": (5000, 460)}
    files = {**monitor("1-0040", 3, first), **monitor("1-0041", 4, second)}
    for cpu in range(2):
        clock = f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
        files.update({f"{clock}/scaling_cur_freq": 2265600, f"{clock}/scaling_governor": "schedutil"})
        files.update({f"{clock}/scaling_min_freq": 2265600, f"{clock}/scaling_max_freq": 2265600})
    gpu = "sys/class/devfreq/17000000.gv11b"
    files.update({f"{gpu}/{name}": 1377000000 for name in ("cur_freq", "min_freq", "max_freq")})
    files["sys/class/devfreq/15340000.vic/cur_freq"] = 115200000
    zones = {"CPU-therm": 41500, "GPU-therm": 52000, "AUX-therm": -256000, "PLL-therm": 150000, "PMIC-Die": 100000}
    for number, (kind, millidegrees) in enumerate(zones.items()):
        zone = f"sys/class/thermal/thermal_zone{number}"
        files.update({f"{zone}/type": kind, f"{zone}/temp": millidegrees})
    files["var/lib/nvpmodel/status"] = "pmode:0000 fmode:quiet"
    files["etc/nvpmodel.conf"] = "< POWER_MODEL ID=0 NAME=MAXN >"
    return write(root, files)


def orin_nano(root: Path) -> Path:
    """Orin Nano on JetPack 6: one monitor, whose first rail feeds the whole module; 7.5 W."""
    return write(root, monitor("1-0040", 1, {"VDD_IN": (5000, 1500), "VDD_CPU_GPU_CV": (5000, 400), "NC": (0, 0)}))


def agx_orin(root: Path) -> Path:
    """AGX Orin on JetPack 6: no input rail, and the memory's rail is fed from VIN_SYS_5V0; 20 W in total."""
    first = {"VDD_GPU_SOC": (20000, 500), "VDD_CPU_CV": (20000, 250), "VIN_SYS_5V0": (5000, 1000)}
    second = {"NC": (0, 0), "VDDQ_VDD2_1V8AO": (5000, 300)}
    return write(root, {**monitor("1-0040", 1, first), **monitor("1-0041", 2, second)})


def thor(root: Path, input_microwatts: int | None = 36_500_000) -> Path:
    """AGX Thor on JetPack 7: three rails of the module, 26 W, and an INA238 at the input of its carrier board.

    input_microwatts: None for a carrier board without the INA238.
    """
    rails = {"VDD_GPU": (20000, 600), "VDD_CPU_SOC_MSS": (20000, 400), "VIN_SYS_5V0": (5000, 1200)}
    files = monitor("2-0040", 3, rails)
    if input_microwatts is not None:
        base = "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon4"
        files.update({f"{base}/name": "ina238", f"{base}/power1_input": input_microwatts})
        files.update({f"{base}/in1_input": 20000, f"{base}/curr1_input": 1825})
    return write(root, files)


def nano(root: Path) -> Path:
    """Nano on JetPack 4: NVIDIA's own driver, in milliwatts; 3.2 W into the module."""
    base = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    rails = {"POM_5V_IN": 3200, "POM_5V_GPU": 400, "POM_5V_CPU": 900}
    files: dict[str, object] = {}
    for number, (name, mw) in enumerate(rails.items()):
        files.update({f"{base}/rail_name_{number}": name, f"{base}/in_power{number}_input": mw})
    return write(root, files)


def pc(root: Path) -> Path:
    """A PC with two CPU packages, each with a separate zone for its cores."""
    files: dict[str, object] = {}
    for package in range(2):
        zone = f"sys/class/powercap/intel-rapl:{package}"
        files.update({f"{zone}/name": f"package-{package}", f"{zone}/energy_uj": 1_000_000})
        files.update({f"{zone}/max_energy_range_uj": 5_000_000, f"{zone}:0/name": "core", f"{zone}:0/energy_uj": 7})
    return write(root, files)
