"""`edgekd doctor`: what is installed and usable, and the command that adds each missing part.

The list of requirements is the metadata of the package. Nothing here imports torch or runs a model.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from edgekd.core.documents import to_plain
from edgekd.deploy.devices.local import gpus
from edgekd.graph.runtimes import runtimes
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CUDA
from edgekd.graph.runtimes.types import HostRuntime, library_version

State = Literal["ok", "missing", "broken"]

# Modules whose names differ from those of their packages.
_MODULES = {
    "cyclonedx-python-lib": "cyclonedx",
    "onnxruntime-gpu": "onnxruntime",
    "opencv-python-headless": "cv2",
    "python-pkcs11": "pkcs11",
    "pyyaml": "yaml",
}
# Other packages with the same module.
_ALTERNATIVES = {"onnxruntime": ("onnxruntime-gpu",), "opencv-python-headless": ("opencv-python",)}
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)\s*(?:>=\s*(?P<minimum>[\d.]+))?(?P<rest>.*)")
_EXTRA = re.compile(r"extra == ['\"](\w+)['\"]")
_ONLY_BELOW = re.compile(r"python_version < ['\"](\d+)\.(\d+)['\"]")
# `all` repeats the others and `dev` is for working on edgekd itself.
_NOT_SHOWN = ("all", "dev")


@dataclass(frozen=True)
class Check:
    """The state of one requirement.

    Args:
        group: Group of the requirement: `python`, `base`, `extras`, `engines`, `gpu` or `device`.
        name: Name of the requirement.
        state: `ok`; `missing`: not installed, and only a problem if it is needed; `broken`: installed, but unusable.
        detail: Version, or what is wrong.
        fix: The command that adds it; null where there is nothing to do.
    """

    group: str
    name: str
    state: State
    detail: str
    fix: str | None = None


@dataclass(frozen=True)
class Requirement:
    """A package that edgekd's metadata requires; `minimum` is empty if any version suffices."""

    name: str
    minimum: str = ""
    extra: str | None = None

    def __str__(self) -> str:
        return f"{self.name}>={self.minimum}" if self.minimum else self.name


@dataclass(frozen=True)
class Diagnosis:
    """The result of `doctor`: its checks, in the order in which to show them."""

    checks: tuple[Check, ...]

    @property
    def document(self) -> list[Any]:
        """The documented list: docs/reference/json.md."""
        plain: list[Any] = to_plain(self.checks)
        return plain

    @property
    def exit_status(self) -> int:
        """1 if something is broken, else 0."""
        return int(any(check.state == "broken" for check in self.checks))


def doctor() -> Diagnosis:
    """Check what is installed on this machine, and whether it works. The command: `edgekd doctor`."""
    return Diagnosis(tuple(diagnose()))


def diagnose(root: Path = Path("/")) -> list[Check]:
    """Return all checks, in the order in which to show them; `root`: the folder that contains /etc and /usr."""
    wanted = requirements()
    base = [requirement for requirement in wanted if requirement.extra is None]
    extras = sorted({requirement.extra for requirement in wanted if requirement.extra})
    return [
        _python(),
        _edgekd(),
        *map(_package, base),
        _images(),
        *(_extra(extra, [each for each in wanted if each.extra == extra]) for extra in extras),
        *map(_engine, runtimes()),
        _gpu(),
        _pycuda(),
        _jetson(root),
        _trtexec(root),
    ]


def requirements() -> list[Requirement]:
    """Return the requirements of the installed edgekd for this Python; none if it is not installed as a package."""
    try:
        lines = metadata.requires("edgekd") or []
    except metadata.PackageNotFoundError:
        return []
    return parse_requirements(lines, sys.version_info[:2])


def parse_requirements(lines: Iterable[str], python: tuple[int, int]) -> list[Requirement]:
    """Parse `Requires-Dist` lines in the forms that edgekd uses: a minimum, an extra, a Python limit."""
    found = []
    for line in lines:
        matched = _REQUIREMENT.match(line)
        extra = _EXTRA.search(line)
        below = _ONLY_BELOW.search(line)
        if matched is None or (extra and extra[1] in _NOT_SHOWN):
            continue
        if below and python >= (int(below[1]), int(below[2])):
            continue
        found.append(Requirement(matched["name"], matched["minimum"] or "", extra[1] if extra else None))
    return found


def _python() -> Check:
    return Check("python", "python", "ok", f"{platform.python_version()} at {sys.executable}")


def _edgekd() -> Check:
    version = library_version("edgekd")
    if version is None:
        return Check("python", "edgekd", "missing", "run from its source without being installed", "pip install -e .")
    return Check("python", "edgekd", "ok", version)


def _package(requirement: Requirement) -> Check:
    version = _installed(requirement.name)
    fix = f"pip install '{requirement}'"
    if version is None:
        return Check("base", requirement.name, "missing", "not installed", fix)
    if _older(version, requirement.minimum):
        return Check("base", requirement.name, "broken", f"{version}, {requirement.minimum} or newer is needed", fix)
    return Check("base", requirement.name, "ok", version)


def _images() -> Check:
    """Check that OpenCV imports: its non-headless build needs system libraries that servers lack."""
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as error:
        missing_library = "lib" in str(error) and ".so" in str(error)
        fix = "sudo apt-get install -y libgl1 libglib2.0-0" if missing_library else "pip install opencv-python-headless"
        return Check("base", "reading images", "broken", f"OpenCV does not import: {error}", fix)
    return Check("base", "reading images", "ok", f"OpenCV {cv2.__version__} imports")


def _extra(extra: str, wanted: list[Requirement]) -> Check:
    """Check whether all packages of an extra are installed."""
    versions = {each: _installed(each.name) for each in wanted}
    lacking = [each for each, version in versions.items() if version is None or _older(version, each.minimum)]
    if lacking:
        fix = "pip install " + " ".join(f"'{each}'" for each in lacking)
        if any(each.name in ONNXRUNTIME_CUDA.distributions for each in lacking):
            fix = ONNXRUNTIME_CUDA.install  # replaces the CPU package, which has the same module
        return Check("extras", extra, "missing", f"lacks {', '.join(map(str, lacking))}", fix)
    return Check("extras", extra, "ok", ", ".join(f"{each.name} {version}" for each, version in versions.items()))


def _engine(engine: HostRuntime) -> Check:
    found = engine.available()
    if found.usable:
        return Check("engines", engine.name, "ok", found.why)
    installed = engine.version() is not None
    broken = installed and found.install is not None  # installed, but something else is missing
    return Check("engines", engine.name, "broken" if broken else "missing", found.why, found.install)


def _gpu() -> Check:
    if shutil.which("nvidia-smi") is None:
        return Check("gpu", "nvidia driver", "missing", "no NVIDIA driver here; builds need none")
    found = gpus()
    if not found:
        return Check("gpu", "nvidia driver", "broken", "nvidia-smi is here but lists no GPU; run it to see why")
    names = ", ".join(f"{gpu.name} (compute capability {gpu.compute_capability})" for gpu in found)
    return Check("gpu", "nvidia driver", "ok", f"{found[0].driver}: {names}")


def _pycuda() -> Check:
    version = _installed("pycuda")
    if version is None:
        return Check(
            "gpu", "pycuda", "missing", "not installed; only running TensorRT engines needs it", "pip install pycuda"
        )
    return Check("gpu", "pycuda", "ok", version)


def _jetson(root: Path) -> Check:
    try:
        release = (root / "etc/nv_tegra_release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Check("device", "jetson", "ok", f"this host is not a Jetson ({platform.machine()})")
    matched = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release)
    detail = f"Jetson with L4T {matched[1]}.{matched[2]}" if matched else f"Jetson: {(release.splitlines() or [''])[0]}"
    return Check("device", "jetson", "ok", detail)


def _trtexec(root: Path) -> Check:
    at = shutil.which("trtexec")
    beside = root / "usr/src/tensorrt/bin/trtexec"  # installed there by JetPack and NVIDIA's packages, outside PATH
    if at is None and beside.is_file():
        at = str(beside)
    if at is None:
        fix = "sudo apt-get install -y libnvinfer-bin"
        return Check("device", "trtexec", "missing", "not here; only building TensorRT engines by hand needs it", fix)
    return Check("device", "trtexec", "ok", at)


def _installed(package: str) -> str | None:
    """Return the version of `package`, or of another package with the same module; None if neither is installed."""
    module = _MODULES.get(package, package.replace("-", "_"))
    if importlib.util.find_spec(module) is None:
        return None
    return library_version(package, *_ALTERNATIVES.get(package, ()))


def _older(version: str, minimum: str) -> bool:
    """Return whether `version` is below `minimum`, by the first three numbers of each."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text.split("+")[0])][:3]

    return bool(minimum) and numbers(version) < numbers(minimum)
