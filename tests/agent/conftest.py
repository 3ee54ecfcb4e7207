"""Fixtures of the agent's tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cameras import BUNDLE, Agent, Answer, install, options, repacked

from edgekd.agent.cli import main
from edgekd.agent.state.slots import State


@pytest.fixture(scope="session")
def bundle(request: pytest.FixtureRequest) -> Path:
    """A real bundle of the tiny detector. Do not change it."""
    told = os.environ.get(BUNDLE)
    if told:
        return Path(told)
    built: Path = request.getfixturevalue("tiny_build").bundle
    return built


@pytest.fixture(scope="session")
def newer(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle with another name, and so with another identity."""
    return repacked(bundle, tmp_path_factory.mktemp("newer"), name="newer")


@pytest.fixture
def agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Agent:
    """Run the agent's command line on a new state, on an unknown device, with the null runtime."""

    def run(command: str, *arguments: object, runtime: str = "null", root: Path = tmp_path / "root") -> Answer:
        capsys.readouterr()
        code = main([command, *map(str, arguments), *options(command, tmp_path / "state", root, runtime)])
        told = capsys.readouterr()
        assert told.err == "" or command == "validate", "a validation shows how far it is"
        assert told.out.count("\n") == 1, "one object on one line"
        return Answer(code, json.loads(told.out))

    return run


@pytest.fixture
def state(tmp_path: Path) -> State:
    """The state that `agent` uses."""
    return State(tmp_path / "state")


@pytest.fixture(scope="session")
def installed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with the bundle in service in slot a. Do not change it; copy it."""
    folder = tmp_path_factory.mktemp("installed") / "state"
    assert install(folder, bundle) == 0
    return folder
