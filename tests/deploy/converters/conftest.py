from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny detector with three layers in INT8. Do not change it."""
    from tiny_int8 import write_int8

    return write_int8(tmp_path_factory.mktemp("tiny-int8") / "tiny-int8.onnx")
