"""Device trees as they are on Jetsons say which target a board is. Runs on cameras' Pythons, too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

import pytest

from edgekd.agent.state.modules import KITS, MODULES, SHIPPED_TARGETS, fits_module, modules_of

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {
    re.search(r'^name = "(.+)"', text, re.MULTILINE)[1]: re.search(r'^compatible = "(.+)"', text, re.MULTILINE)[1]
    for text in (path.read_text("utf-8") for path in (ROOT / "targets").glob("*.toml"))
}

# /proc/device-tree/compatible of developer kits, with the targets that they are.
KIT_TREES = {
    "nvidia,p3449-0000-b00+p3448-0000-b00 nvidia,jetson-nano nvidia,tegra210": {"nano"},  # L4T 32, module B01
    "nvidia,p3449-0000+p3448-0000 nvidia,jetson-nano nvidia,tegra210": {"nano"},
    "nvidia,p3450-0000 nvidia,tegra210": {"nano"},  # the kernel's own
    "nvidia,p2597-0000+p3310-1000 nvidia,tegra186": {"tx2"},  # L4T 32
    "nvidia,p2771-0000 nvidia,tegra186": {"tx2"},
    "nvidia,p2972-0000 nvidia,tegra194": {"xavier"},  # L4T 32 and 35
    "nvidia,p3449-0000+p3668-0000 nvidia,p3509-0000+p3668-0000 nvidia,tegra194": {"xavier-nx"},  # L4T 32
    "nvidia,p3449-0000+p3668-0001 nvidia,p3509-0000+p3668-0001 nvidia,tegra194": {"xavier-nx"},  # L4T 35, eMMC
    "nvidia,p3737-0000+p3701-0000 nvidia,tegra234 nvidia,tegra23x": {"agx-orin"},  # L4T 35, 32 GB
    "nvidia,p3737-0000+p3701-0005 nvidia,p3701-0005 nvidia,tegra234": {"agx-orin"},  # L4T 36
    "nvidia,p3768-0000+p3767-0000 nvidia,p3767-0000 nvidia,tegra234": {"orin-nx"},
    "nvidia,p3768-0000+p3767-0000-super nvidia,p3767-0000 nvidia,tegra234": {"orin-nx"},
    "nvidia,p3509-0000+p3767-0000 nvidia,tegra234": {"orin-nx"},  # L4T 35, in the kit of the Xavier NX
    "nvidia,p3768-0000+p3767-0005 nvidia,p3767-0005 nvidia,tegra234": {"orin-nano", "orin-nano-super"},
    "nvidia,p3768-0000+p3767-0005-super nvidia,p3767-0005 nvidia,tegra234": {"orin-nano", "orin-nano-super"},
    "nvidia,p4071-0000+p3834-0008 nvidia,p3834-0008 nvidia,tegra264": {"thor"},
}
# Smaller or slower modules of a family, with the targets of which they are variants.
VARIANT_TREES = {
    "nvidia,p2972-0006 nvidia,tegra194": {"xavier"},
    "nvidia,galen-industrial nvidia,jetson-xavier-industrial nvidia,tegra194": {"xavier"},
    "nvidia,p3737-0000+p3701-0004 nvidia,p3701-0004 nvidia,tegra234": {"agx-orin"},
    "nvidia,p3737-0000+p3701-0008 nvidia,p3701-0008 nvidia,tegra234": {"agx-orin"},
    "nvidia,p3740-0002+p3701-0008 nvidia,p3701-0008 nvidia,tegra234": {"agx-orin"},
    "nvidia,p3768-0000+p3767-0001 nvidia,p3767-0001 nvidia,tegra234": {"orin-nx"},
    "nvidia,p3768-0000+p3767-0004-super nvidia,p3767-0004 nvidia,tegra234": {"orin-nano", "orin-nano-super"},
    "nvidia,p4071-0000+p3834-0000 nvidia,p3834-0000 nvidia,tegra264": {"thor"},
    "nvidia,p3509-0000+p3636-0001 nvidia,tegra186": {"tx2"},
}


@pytest.mark.parametrize("tree", KIT_TREES)
def test_a_developer_kit_fits_its_targets_and_no_other(tree: str) -> None:
    found = {name: fits_module(compatible, tree.split()) for name, compatible in TARGETS.items()}
    assert found == {name: name in KIT_TREES[tree] for name in TARGETS}, "True or False, and never None"


@pytest.mark.parametrize("tree", VARIANT_TREES)
def test_a_variant_is_neither_its_familys_target_nor_another_device(tree: str) -> None:
    found = {name: fits_module(compatible, tree.split()) for name, compatible in TARGETS.items()}
    assert found == {name: None if name in VARIANT_TREES[tree] else False for name in TARGETS}


@pytest.mark.parametrize(
    ("compatible", "tree", "fits"),
    [
        ("nvidia,jetson-orin-nx", "acme,gate nvidia,p3767-0000 nvidia,tegra234", True),  # the module is named
        ("nvidia,jetson-agx-xavier", "acme,gate nvidia,p3767-0000 nvidia,tegra234", False),
        ("nvidia,jetson-agx-xavier", "acme,gate nvidia,tegra194", None),  # a carrier board that names no module
        ("nvidia,jetson-agx-orin", "acme,gate nvidia,tegra194", None),
        ("acme,gate", "acme,gate nvidia,tegra194", True),
        ("acme,gate", "nvidia,p2972-0000 nvidia,tegra194", None),  # a target of one's own, tried on a kit
        ("acme,gate", "acme,gate nvidia,p2972-0000", True),
        ("nvidia,jetson-orin-nx", "nvidia,p3768-0000 nvidia,tegra234", None),  # a carrier board alone
        ("nvidia,jetson-agx-orin", "nvidia,p3737-0000+p3701-9999 nvidia,tegra234", None),  # a module of later days
        ("nvidia,jetson-agx-xavier", "", None),
    ],
)
def test_what_is_unknown_stays_open(compatible: str, tree: str, fits: Optional[bool]) -> None:  # noqa: UP045
    assert fits_module(compatible, tree.split()) is fits


def test_a_tree_with_two_modules_fits_either() -> None:
    """As overlays and emulated modules have it."""
    names = ("nvidia,p3737-0000+p3701-0000", "nvidia,p3768-0000+p3767-0000", "nvidia,p3701-0000")
    assert len(modules_of(names)) == 2
    assert fits_module("nvidia,jetson-agx-orin", names) is fits_module("nvidia,jetson-orin-nx", names) is True
    assert fits_module("nvidia,jetson-orin-nano", names) is False


def test_the_table_has_every_shipped_target() -> None:
    known = {target for module in (*MODULES.values(), *KITS.values()) for target in module.targets}
    jetsons = {
        re.search(r'^compatible = "(.+)"', text, re.MULTILINE)[1]
        for text in (path.read_text("utf-8") for path in (ROOT / "targets").glob("*.toml"))
        if 'kind = "jetson"' in text
    }
    assert known == jetsons
    assert set(TARGETS.values()) == SHIPPED_TARGETS


def test_a_module_is_a_target_or_a_variant_of_one() -> None:
    for module in (*MODULES.values(), *KITS.values()):
        assert bool(module.targets) != bool(module.variant_of), module.title
        assert SHIPPED_TARGETS.issuperset(module.variant_of), module.title


def test_the_documentation_has_every_part_number() -> None:
    page = (ROOT / "docs" / "reference" / "agent.md").read_text("utf-8")
    names = [*MODULES, *(name.partition(",")[2] for name in KITS)]
    assert [name for name in names if f"`{name}`" not in page] == []
