"""Draw the diagrams of the documentation as SVG: states of a bundle on a camera, steps from a checkpoint to the camera.

`make schemas` writes them. `--check` writes nothing, and fails if a file is out of date.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parent))
from drawing import card
from generated import write

from edgekd.builds.step_kinds import step_kinds

PICTURES = Path(__file__).parent / "pictures"
WIDTH = 380  # px: a phone shows it without scaling
BOX_WIDTH, BOX_HEIGHT = 128, 42  # px
LINE = 15  # px, between lines of text


@dataclass(frozen=True)
class State:
    """A state of a bundle on a camera. shown: fields of `status` that show it; x, y: top left corner of its box, px."""

    name: str
    shown: str
    x: int
    y: int


@dataclass(frozen=True)
class Transition:
    """A change of state by a command of the agent.

    path: SVG path of the arrow; at: position of the label in px; anchor: whether the label starts or ends there; other:
    the command acts on another bundle.
    """

    before: str
    command: str
    after: str
    path: str
    at: tuple[int, int]
    anchor: Literal["start", "end"] = "start"
    other: bool = False


STATES = (
    State("file", "no slot has it", 78, 40),
    State("unpacked", "candidate", 78, 114),
    State("built", "candidate, engine", 78, 188),
    State("tested", "candidate, self_test", 78, 262),
    State("on trial", "active, trial", 78, 336),
    State("committed", "active", 78, 410),
    State("rejected", "rejected", 262, 336),
    State("previous", "previous", 262, 410),
)
TRANSITIONS = (
    Transition("file", "unpack", "unpacked", "M142 82V112", (150, 101)),
    Transition("unpacked", "build", "built", "M142 156V186", (150, 175)),
    Transition("built", "selftest", "tested", "M142 230V260", (150, 249)),
    Transition("tested", "install", "on trial", "M142 304V334", (150, 323)),
    Transition("on trial", "commit", "committed", "M142 378V408", (150, 397)),
    Transition("tested", "activate", "committed", "M78 283H66V431H76", (62, 323), "end"),
    Transition("file", "install", "on trial", "M78 61H12V357H76", (20, 52)),
    Transition("on trial", "boot", "on trial", "M98 378V390H118V380", (93, 397), "end"),
    Transition("on trial", "rollback", "rejected", "M206 350H260", (208, 345)),
    Transition("on trial", "boot", "rejected", "M206 366H260", (210, 378)),
    Transition("committed", "rollback", "rejected", "M200 410V394H326V380", (240, 391)),
    Transition("committed", "install", "previous", "M206 424H260", (212, 419), other=True),
    Transition("previous", "rollback", "committed", "M262 442H208", (210, 455), other=True),
    Transition("rejected", "unpack", "tested", "M326 336V283H208", (250, 278)),
)


def lifecycle() -> str:
    """Return the diagram of the states of a bundle on a camera."""
    title = "States of a bundle on a camera"
    notes = (
        "install = unpack, build, selftest, then a trial.",
        "boot at each start takes a try; without one left it rolls",
        "back. In italics: the command is about the other bundle.",
    )
    parts = [*map(arrow, TRANSITIONS), *map(state_box, STATES)]
    parts += [text(20, 484 + LINE * line, note, "note") for line, note in enumerate(notes)]
    return card(title, WIDTH, 528, parts)


def state_box(state: State) -> str:
    """Return the box of a state: its name, and the fields of `status` that show it."""
    served = state.shown.startswith("active")
    return box(state.x, state.y, BOX_WIDTH if state.x < WIDTH / 2 else 104, state.name, state.shown, served=served)


def box(x: int, y: int, width: int, name: str, note: str, *, served: bool = False) -> str:
    """Return a box with two lines of text."""
    kind = "box served" if served else "box"
    middle = x + width / 2
    return (
        f"<rect class='{kind}' x='{x}' y='{y}' width='{width}' height='{BOX_HEIGHT}' rx='6'/>"
        f"<text x='{middle:g}' y='{y + 18}' text-anchor='middle' font-weight='bold'>{escape(name)}</text>"
        f"<text class='note' x='{middle:g}' y='{y + 34}' text-anchor='middle'>{escape(note)}</text>"
    )


def arrow(transition: Transition) -> str:
    """Return the arrow of a transition with its command."""
    x, y = transition.at
    style = "note italic" if transition.other else "note"
    label = text(x, y, transition.command, style, transition.anchor)
    return f"<path class='arrow' d='{transition.path}' marker-end='url(#head)'/>{label}"


def text(x: int, y: int, content: str, style: str, anchor: str = "start") -> str:
    """Return a line of text."""
    return f"<text class='{style}' x='{x}' y='{y}' text-anchor='{anchor}'>{escape(content)}</text>"


@dataclass(frozen=True)
class Station:
    """A form of a detector between checkpoint and camera. by: the steps that produce it, or notes, one per line."""

    name: str
    by: Sequence[str]


def way() -> str:
    """Return the diagram of the steps from a checkpoint to the camera."""
    steps = [kind.name for kind in step_kinds()]
    quantize = steps.index("quantize")
    host = [
        Station("checkpoint", [".pt, or an .onnx file"]),
        Station("smaller checkpoint", wrapped(steps[:quantize])),
        Station("ONNX, float32", ["exported, compared, scored"]),
        Station("ONNX with Q/DQ", wrapped(steps[quantize:])),
        Station("packed graph", ["the same codes, compressed"]),
        Station("bundle", ["signed, with golden frames,", "evidence and the agent"]),
    ]
    camera = [
        Station("verified graph", ["signatures, hashes, device"]),
        Station("engine", ["built for this very device"]),
        Station("tested engine", ["golden frames, latency"]),
        Station("model in service", ["a trial, then committed"]),
    ]
    top, end = 62, 62 + 64 * len(host) - 22
    parts = [text(20, top - 10, "edgekd build", "region"), *stations(host, top)]
    parts += [f"<path class='arrow' d='M84 {end}V{end + 44}' marker-end='url(#head)'/>"]
    parts += [text(94, end + 20, "edgekd pack for RAUC, SWUpdate or Mender", "note")]
    parts += [text(164, end + 38, "agent.pyz install", "region"), *stations(camera, end + 46)]
    return card("From a checkpoint to the camera", WIDTH, end + 46 + 64 * len(camera) - 8, parts)


def wrapped(names: Sequence[str]) -> list[str]:
    """Return step names wrapped to lines that fit beside a box."""
    return textwrap.wrap(", ".join(names), 32)


def stations(row: Sequence[Station], top: int) -> Iterator[str]:
    """Yield boxes below one another, joined by arrows, with their notes beside them."""
    for index, station in enumerate(row):
        y = top + 64 * index
        middle = y + BOX_HEIGHT / 2
        if index:
            yield f"<path class='arrow' d='M84 {y - 22}V{y - 2}' marker-end='url(#head)'/>"
        yield f"<rect class='box' x='16' y='{y}' width='136' height='{BOX_HEIGHT}' rx='6'/>"
        yield f"<text x='84' y='{middle + 4:g}' text-anchor='middle' font-weight='bold'>{escape(station.name)}</text>"
        first = middle + 4 - LINE * (len(station.by) - 1) / 2
        for line, note in enumerate(station.by):
            yield f"<text class='note' x='164' y='{first + LINE * line:g}'>{escape(note)}</text>"


def main() -> None:
    pictures = {"lifecycle": lifecycle(), "way": way()}
    write({PICTURES / f"{name}.svg": picture for name, picture in pictures.items()})


if __name__ == "__main__":
    main()
