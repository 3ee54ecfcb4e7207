"""Jetson modules by the names in their device trees, and the targets that they are. Pure data and rules.

A stock device tree names part numbers: `nvidia,p3768-0000+p3767-0005` is a carrier board and a module, and
`nvidia,p2972-0000` is a developer kit. A target has the name of a product instead, such as `nvidia,jetson-orin-nano`.

Sources. Part numbers of modules: rbonghi/jetson_stats 7.2.0, jtop/core/jetson_variables.py, MODULE_NAME_TABLE. Names in
device trees: torvalds/linux Documentation/devicetree/bindings/arm/tegra.yaml and arch/arm64/boot/dts/nvidia, and
NVIDIA/jetson-gpio, gpio_pin_data.py, whose first version has the older names. `-super` ends the names of Orin NX and
Orin Nano that were flashed for the power modes of JetPack 6.2; the modules are the same. T4000: OE4T/meta-tegra
conf/machine/include/agx-thor-t4000.inc.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

NANO = "nvidia,jetson-nano"
TX2 = "nvidia,jetson-tx2"
XAVIER = "nvidia,jetson-agx-xavier"
XAVIER_NX = "nvidia,jetson-xavier-nx"
AGX_ORIN = "nvidia,jetson-agx-orin"
ORIN_NX = "nvidia,jetson-orin-nx"
ORIN_NANO = "nvidia,jetson-orin-nano"
ORIN_NANO_SUPER = "nvidia,jetson-orin-nano-super"
THOR = "nvidia,jetson-agx-thor"
_JETSONS = (NANO, TX2, XAVIER, XAVIER_NX, AGX_ORIN, ORIN_NX, ORIN_NANO, ORIN_NANO_SUPER, THOR)
_CARDS = ("a100", "gb10", "h100", "rtx-30", "rtx-40", "rtx-50", "t4")
SHIPPED_TARGETS = frozenset((*_JETSONS, *(f"nvidia,{card}" for card in _CARDS), "generic,x86-64"))
"""`compatible` of every shipped target."""


@dataclass(frozen=True)
class Module:
    """A Jetson module.

    targets: those whose figures hold for it: GPU, clocks and memory bandwidth; memory may be larger or smaller.
    variant_of: the target of a module of the same family with a larger or faster GPU.
    """

    title: str
    targets: tuple[str, ...] = ()
    variant_of: tuple[str, ...] = ()


_TX2 = Module("Jetson TX2", (TX2,))
_XAVIER = Module("Jetson AGX Xavier", (XAVIER,))  # 16, 32 and 64 GB have one device tree
_XAVIER_INDUSTRIAL = Module("Jetson AGX Xavier Industrial", variant_of=(XAVIER,))
# Whether it runs as Super is a power mode, which the record of a measurement has.
_ORIN_NANO = Module("Jetson Orin Nano 8GB", (ORIN_NANO, ORIN_NANO_SUPER))

MODULES = {
    "p3448-0000": Module("Jetson Nano", (NANO,)),
    "p3448-0002": Module("Jetson Nano", (NANO,)),
    "p3310-1000": _TX2,
    "p3489-0000": Module("Jetson TX2i", variant_of=(TX2,)),
    "p3489-0888": Module("Jetson TX2 4GB", variant_of=(TX2,)),
    "p3636-0001": Module("Jetson TX2 NX", variant_of=(TX2,)),
    "p2888-0001": _XAVIER,
    "p2888-0003": _XAVIER,
    "p2888-0004": _XAVIER,
    "p2888-0005": _XAVIER,
    "p2888-0006": Module("Jetson AGX Xavier 8GB", variant_of=(XAVIER,)),
    "p2888-0008": _XAVIER_INDUSTRIAL,
    "p3668-0000": Module("Jetson Xavier NX 8GB", (XAVIER_NX,)),
    "p3668-0001": Module("Jetson Xavier NX 8GB", (XAVIER_NX,)),
    "p3668-0003": Module("Jetson Xavier NX 16GB", (XAVIER_NX,)),
    "p3701-0000": Module("Jetson AGX Orin of the developer kit", (AGX_ORIN,)),
    "p3701-0002": Module("IGX Orin", variant_of=(AGX_ORIN,)),
    "p3701-0004": Module("Jetson AGX Orin 32GB", variant_of=(AGX_ORIN,)),
    "p3701-0005": Module("Jetson AGX Orin 64GB", (AGX_ORIN,)),
    "p3701-0008": Module("Jetson AGX Orin Industrial", variant_of=(AGX_ORIN,)),
    "p3767-0000": Module("Jetson Orin NX 16GB", (ORIN_NX,)),
    "p3767-0001": Module("Jetson Orin NX 8GB", variant_of=(ORIN_NX,)),
    "p3767-0003": _ORIN_NANO,
    "p3767-0004": Module("Jetson Orin Nano 4GB", variant_of=(ORIN_NANO, ORIN_NANO_SUPER)),
    "p3767-0005": _ORIN_NANO,
    "p3834-0000": Module("Jetson T4000", variant_of=(THOR,)),
    "p3834-0008": Module("Jetson AGX Thor T5000", (THOR,)),
}
"""By the part number and SKU of the module."""
KITS = {
    "nvidia,p3450-0000": Module("Jetson Nano", (NANO,)),
    "nvidia,p2771-0000": _TX2,
    "nvidia,p2771-0888": Module("Jetson TX2 4GB", variant_of=(TX2,)),
    "nvidia,p2972-0000": _XAVIER,
    "nvidia,p2972-0006": Module("Jetson AGX Xavier 8GB", variant_of=(XAVIER,)),
    "nvidia,jetson-xavier": _XAVIER,
    "nvidia,galen-industrial": _XAVIER_INDUSTRIAL,
    "nvidia,jetson-xavier-industrial": _XAVIER_INDUSTRIAL,
}
"""By the name of a developer kit as a whole, in device trees that do not name the module."""
_NAME = re.compile(r"nvidia,(?:\S+\+)?(?P<part>p\d{4}-\d{4})(?:-[a-z]\w*)?")  # carrier+module-revision


def modules_of(names: Sequence[str]) -> tuple[Module, ...]:
    """Return the known modules among the names of a device tree, each once."""
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        module = MODULES.get(match["part"]) if match else None
        module = module or KITS.get(name)
        if module and module not in found:
            found.append(module)
    return tuple(found)


def fits_module(compatible: str, names: Sequence[str]) -> bool | None:
    """Return whether a bundle for `compatible` is for the device with these names in its tree.

    False only where both are known and differ. None where the module is unknown (a carrier board of one's own), where
    the target is (one of one's own), or where the module is a smaller variant of the target's.
    """
    if compatible in names:
        return True
    modules = modules_of(names)
    if not modules or compatible not in SHIPPED_TARGETS:
        return None
    if any(compatible in module.targets for module in modules):
        return True
    return None if any(compatible in module.variant_of for module in modules) else False
