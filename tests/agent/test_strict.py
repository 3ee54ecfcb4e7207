"""A strict camera takes nothing unsigned, for an unknown board or of another model. Runs on cameras' Pythons, too."""

from __future__ import annotations

from pathlib import Path

import pytest
from cameras import Agent, identity_of, repacked
from signer import signed, trust_file

COMPATIBLE = "nvidia,jetson-agx-xavier"


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """The folder of a camera's firmware that says that it is strict, and nothing else."""
    folder = tmp_path / "root" / "etc" / "edgekd"
    folder.mkdir(parents=True)
    (folder / "strict").touch()
    return folder


@pytest.fixture
def known(etc: Path, bundle: Path) -> Path:
    """The same, with a trust file and the name of the device."""
    (etc / "compatible").write_text(COMPATIBLE + "\n")
    return trust_file(etc / "trust.json")


@pytest.fixture
def people(bundle: Path, tmp_path: Path) -> Path:
    """A signed bundle of the model `people`."""
    named = repacked(bundle, tmp_path / "people", name="people")
    return signed(named, tmp_path / "people.edgekd", 1)


@pytest.mark.usefixtures("known")
def test_a_strict_camera_takes_what_is_signed_and_for_it(agent: Agent, people: Path, bundle: Path) -> None:
    assert agent("install", people).code == 0
    assert agent("status").result["strict"] is True
    assert agent("unpack", bundle).error["kind"] == "SignatureError"


def test_a_strict_camera_without_a_trust_file_takes_nothing(agent: Agent, etc: Path, people: Path) -> None:
    (etc / "compatible").write_text(COMPATIBLE)
    for command in ("install", "unpack"):
        error = agent(command, people).error
        assert (error["kind"], error["what"]) == ("SignatureError", "no trust file")
        assert error["expected"] == "one, as /etc/edgekd/strict requires"
    trust_file(etc / "trust.json")
    assert agent("install", people).code == 0


def test_what_was_unpacked_before_a_camera_became_strict_does_not_go_into_service(
    agent: Agent, etc: Path, bundle: Path, tmp_path: Path
) -> None:
    (etc / "strict").unlink()
    assert [agent("unpack", bundle).code, agent("build").code, agent("selftest").code] == [0, 0, 0]
    assert agent("status").result["strict"] is False
    (etc / "strict").touch()
    assert agent("activate").error["what"] == "no trust file"
    trust_file(etc / "trust.json")
    assert agent("unpack", signed(bundle, tmp_path / "signed.edgekd", 1)).error["kind"] == "BundleError"
    assert agent("activate").code == 1


def test_a_strict_camera_has_to_be_known(agent: Agent, etc: Path, people: Path) -> None:
    trust_file(etc / "trust.json")
    error = agent("install", people).error
    assert (error["kind"], error["what"]) == ("BundleError", f"{people}: not known to fit")
    assert error["found"] == COMPATIBLE
    (etc / "compatible").write_text(COMPATIBLE)
    assert agent("install", people).result["fits"] is True


@pytest.mark.usefixtures("known")
def test_a_bundle_of_another_model_is_refused(agent: Agent, people: Path) -> None:
    error = agent("install", people, "--model", "vehicles").error
    assert (error["kind"], error["expected"], error["found"]) == ("BundleError", "name vehicles", "people")
    assert agent("install", people, "--model", "people").result["identity"] == identity_of(people)


@pytest.mark.usefixtures("known")
def test_a_role_decides_in_place_of_the_name(agent: Agent, people: Path, tmp_path: Path) -> None:
    both = signed(repacked(people, tmp_path / "both", role="vehicles"), tmp_path / "both.edgekd", 1)
    assert agent("install", both, "--model", "people").error["expected"] == "role people, or none"
    assert agent("install", both).error["kind"] == "BundleError"
    assert agent("install", both, "--model", "vehicles").code == 0


@pytest.mark.usefixtures("known")
def test_the_model_is_checked_before_it_goes_into_service(agent: Agent, etc: Path, people: Path) -> None:
    (etc / "strict").unlink()
    model = ("--model", "vehicles")
    for call in (("unpack", people), ("build",), ("selftest",)):
        assert agent(*call, *model).code == 0
    (etc / "strict").touch()
    assert agent("activate", *model).error["kind"] == "BundleError"
