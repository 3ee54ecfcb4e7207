"""Reading a checkpoint runs nothing that is in it, and still gives the network that was saved."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.core.errors import SpecError
from edgekd.detectors.ultralytics.checkpoint import load_checkpoint

torch = pytest.importorskip("torch")
tasks = pytest.importorskip("ultralytics.nn.tasks")


class Calls:
    """Pickled, this is a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Made:
    """Pickled, this is a call of `kind` without arguments, which is then given `state`."""

    def __init__(self, kind: type, state: Any) -> None:
        self.parts = (kind, (), state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


class Marker:
    """A file that an attack makes when it succeeds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.command = f"touch {path}"

    @property
    def made(self) -> bool:
        return self.path.exists()


@pytest.fixture
def marker(tmp_path: Path) -> Marker:
    return Marker(tmp_path / "executed")


@pytest.fixture(scope="module")
def network() -> Any:
    return tasks.DetectionModel("yolov8n.yaml", nc=3, verbose=False).half().eval()


def saved(content: Any, folder: Path, **options: Any) -> Path:
    path = folder / "model.pt"
    torch.save(content, path, **options)
    return path


def refusal(path: Path) -> str:
    """The message with which a file is refused: one line, and it names the file."""
    with pytest.raises(SpecError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def shell(marker: Marker) -> Any:
    return Calls(os.system, marker.command)


def evaluated_by_a_constructor(marker: Marker) -> Any:
    """Ultralytics evaluates the `activation` of the description that DetectionModel is made from."""
    description = {"nc": 1, "backbone": [[-1, 1, "Conv", [8]]], "head": []}
    return Calls(tasks.DetectionModel, {**description, "activation": f"__import__('os').system({marker.command!r})"})


def unpickled_by_a_function(marker: Marker) -> Any:
    return Calls(tasks.torch_safe_load, inner(marker))


def inner(marker: Marker) -> str:
    """Another checkpoint, which runs the command where it is loaded without care."""
    path = marker.path.with_name("inner.pt")
    torch.save({"model": shell(marker)}, path)
    return str(path)


ATTACKS = [shell, evaluated_by_a_constructor, unpickled_by_a_function]


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_checkpoint_says_is_not_executed(attack: Callable[[Marker], Any], marker: Marker) -> None:
    path = saved({"model": attack(marker)}, marker.path.parent)
    refusal(path)
    assert not marker.made


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_is_executed_for_who_trusts_it(attack: Callable[[Marker], Any], marker: Marker) -> None:
    """Also the proof that the attacks above are real."""
    path = saved({"model": attack(marker)}, marker.path.parent)
    with contextlib.suppress(SpecError):  # executed, and then perhaps no network
        load_checkpoint(path, trust=True)
    assert marker.made


def test_the_name_that_is_refused_is_told(marker: Marker) -> None:
    message = refusal(saved({"model": shell(marker)}, marker.path.parent))
    assert f"{os.system.__module__}.system" in message
    assert "--trust-checkpoint" in message


def test_a_plain_pickle_is_refused_unread(marker: Marker) -> None:
    path = marker.path.with_name("model.pt")
    path.write_bytes(pickle.dumps({"model": shell(marker)}))
    assert "torch.save" in refusal(path)
    assert not marker.made


def test_an_attack_hidden_in_a_layer_is_refused(network: Any, marker: Marker) -> None:
    state = {**network.__dict__, "_forward_pre_hooks": {0: shell(marker)}}
    refusal(saved({"model": Made(tasks.DetectionModel, state)}, marker.path.parent))
    assert not marker.made


@pytest.mark.parametrize(
    "name",
    [
        "ultralytics.nn.tasks.load_checkpoint",
        "ultralytics.nn.tasks.torch_safe_load",
        "ultralytics.nn.tasks.Path",
        "ultralytics.nn.tasks.Conv",  # a layer, but from elsewhere
        "ultralytics.nn.modules.block.torch_utils",
        "torch.nn.modules.module.register_module_forward_hook",
        "torch.nn.modules.module.Any",
        "torch.nn.modules.container.operator.methodcaller",
        "torch.nn.modules.no.such.thing",
        "torch.hub.load",
        "builtins.getattr",
        "builtins.eval",
        "subprocess.Popen",
        "torch.nn.modulesx.Conv2d",
    ],
)
def test_only_layers_pass_and_only_under_their_own_name(name: str, tmp_path: Path) -> None:
    module, _, attribute = name.rpartition(".")
    plain = saved({"model": Calls(len, "x")}, tmp_path)
    path = replaced(plain, b"c__builtin__\nlen\n", f"c{module}\n{attribute}\n".encode())
    assert attribute in refusal(path)


def replaced(path: Path, old: bytes, new: bytes) -> Path:
    """The checkpoint with other bytes in its pickle."""
    import zipfile

    out = path.with_name("replaced.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert old in content
                content = content.replace(old, new)
            target.writestr(entry.filename, content)
    return out


def test_a_layer_is_not_called_with_the_files_arguments(tmp_path: Path) -> None:
    block = pytest.importorskip("ultralytics.nn.modules.block")
    refusal(saved({"model": Calls(block.TorchVision, "resnet18", "DEFAULT")}, tmp_path))


@pytest.mark.parametrize("state", [({}, {"__class__": torch.nn.Identity}), [("a", 1)], "state", 3])
def test_a_layer_takes_attributes_and_nothing_else(state: Any, tmp_path: Path) -> None:
    refusal(saved({"model": Made(torch.nn.Conv2d, state)}, tmp_path))


@pytest.mark.parametrize("layer", [torch.nn.LSTM, torch.nn.Upsample, torch.nn.BatchNorm2d])
@pytest.mark.parametrize("state", [{"_parameters": {}}, {"all_weights": [], "_modules": None, "_buffers": 1}, {1: 2}])
def test_attributes_that_no_layer_has_are_refused_in_one_line(layer: type, state: Any, tmp_path: Path) -> None:
    refusal(saved({"model": Made(layer, state)}, tmp_path))


def test_the_network_that_was_saved_comes_back(network: Any, tmp_path: Path) -> None:
    found = load_checkpoint(saved({"model": network, "ema": None, "train_args": {"imgsz": 320}}, tmp_path))
    assert type(found.model) is tasks.DetectionModel
    assert found.train_args == {"imgsz": 320}
    frame = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.model(frame)[0], network.float()(frame)[0])
    assert not found.model.training
    assert {parameter.dtype for parameter in found.model.parameters()} == {torch.float32}


def test_the_averaged_network_goes_before_the_last_one(network: Any, tmp_path: Path) -> None:
    other = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))
    found = load_checkpoint(saved({"model": network, "ema": other}, tmp_path))
    assert type(found.model) is torch.nn.Sequential


def test_what_training_leaves_behind_does_not_hinder(network: Any, tmp_path: Path) -> None:
    """Results as NumPy scalars, paths, a namespace, a loss: all seen in checkpoints that users have."""
    from ultralytics.cfg import get_cfg
    from ultralytics.utils.loss import v8DetectionLoss

    network.args = get_cfg()
    network.criterion = v8DetectionLoss(network)
    content = {
        "model": network,
        "best_fitness": np.float64(0.5),
        "train_metrics": {"map": np.float32(0.5), "at": np.arange(3)},
        "train_args": {"imgsz": 640, "save_dir": pathlib.PosixPath("/tmp"), "data": pathlib.PurePosixPath("a")},
    }
    path = saved(content, tmp_path)
    network.criterion = None
    found = load_checkpoint(path)
    assert found.train_args["imgsz"] == 640
    with torch.no_grad():
        found.model(torch.rand(1, 3, 64, 64))


def test_a_truncated_file_is_refused(network: Any, tmp_path: Path) -> None:
    path = saved({"model": network}, tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "complete" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"not a model\n", b"PK\x03\x04 not a zip", b"\x80\x02."])
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    refusal(path)


def test_weights_alone_are_not_a_network(network: Any, tmp_path: Path) -> None:
    assert "state_dict" in refusal(saved(network.state_dict(), tmp_path))
    assert "state_dict" in refusal(saved({"model": network.state_dict()}, tmp_path))


@pytest.mark.parametrize("content", [{"model": None}, {"epoch": 3}, [1, 2], 3, {"model": "yolo11n"}])
def test_a_checkpoint_without_a_network_is_refused(content: Any, tmp_path: Path) -> None:
    assert "no network" in refusal(saved(content, tmp_path))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_and_the_format_before_2020_are_refused(network: Any, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Identity()), tmp_path / "model.pt")
    refusal(tmp_path / "model.pt")
    refusal(saved({"model": network}, tmp_path, _use_new_zipfile_serialization=False))


def test_a_trusted_checkpoint_loads(network: Any, tmp_path: Path) -> None:
    found = load_checkpoint(saved({"model": network}, tmp_path), trust=True)
    assert type(found.model) is tasks.DetectionModel


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11n.pt", "yolo26n.pt", "yolo11n-ppe.pt"])
def test_real_checkpoints_load_as_if_they_were_trusted(shared: Path, name: str) -> None:
    path = shared / "models" / name
    found, trusted = load_checkpoint(path), load_checkpoint(path, trust=True)
    for (place, layer), (_, other) in zip(found.model.named_modules(), trusted.model.named_modules(), strict=True):
        assert type(layer) is type(other), place
        assert set(vars(layer)) == set(vars(other)), place
    frame = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.model(frame)[0], trusted.model(frame)[0])
