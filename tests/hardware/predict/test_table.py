"""Tables of what was measured on a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.core.errors import SpecError
from edgekd.hardware.predict.table import MeasuredLayer, MeasuredNetwork, MeasuredTable, load_table, table_toml
from edgekd.hardware.predict.work import Work
from edgekd.hardware.target import load_target

HEAD = 'target = "xavier"\nprecision = "int8"\nmeasured = "by a test"\n'
LAYER = '[[layers]]\nkind = "conv"\npositions = 100\ninputs = 16\noutputs = 32\nkernel = 9\nus = 12.5\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "table.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_layer_is_known_by_its_work(tmp_path: Path) -> None:
    table = load_table(written(tmp_path, HEAD + LAYER), load_target("xavier"))
    assert table.layers[0].work == Work("", "conv", positions=100, inputs=16, outputs=32, kernel=9)
    assert table.layers[0].us == 12.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD, "no measurements.*found none"),
        (HEAD + LAYER.replace("12.5", "0"), "times above 0; found 0"),
        (HEAD.replace("xavier", "nano") + LAYER, "another target; expected xavier; found nano"),
        (HEAD + LAYER.replace("inputs", "input"), "unknown key 'input'.*inputs"),
        (HEAD.replace("int8", "int4") + LAYER, "did you mean 'int8'"),
    ],
)
def test_a_table_that_says_nothing_of_the_target_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=said):
        load_table(written(tmp_path, text), load_target("xavier"))


def test_a_table_that_is_written_is_read_as_it_was(tmp_path: Path) -> None:
    networks = (MeasuredNetwork('a "b"\\c.onnx', 4.1), MeasuredNetwork("d.onnx", 1e-05))
    layers = (MeasuredLayer("conv", 6400, 64, 64, 9, us=31.5), MeasuredLayer("copy", read=100, plugin=True, us=2.0))
    table = MeasuredTable("xavier", "int8", "by a test\n\x7f é", networks, layers)
    assert load_table(written(tmp_path, table_toml(table)), load_target("xavier")) == table
