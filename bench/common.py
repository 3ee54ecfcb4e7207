"""What the benchmarks share: the machine they run on, the data they run on, and how a result is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from edgekd.devices.local import LocalDevice
from edgekd.engines.onnxruntime import ONNXRUNTIME_CPU
from edgekd.files import write_file

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SHARED = HERE.parent.parent / "shared"
"""Where models and data lie unless `--shared` says otherwise."""


def conditions(threads: int) -> dict[str, Any]:
    """What a result must say about where and when: the clock's date, the machine, and how busy it was before."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": LocalDevice(ONNXRUNTIME_CPU, threads).facts().as_json(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def host_line(host: Mapping[str, Any]) -> str:
    """The machine and its libraries in a sentence."""
    libraries = ", ".join(f"{name} {version}" for name, version in host["libraries"].items())
    return f"Host: {host['cpu']}, {host['cores']} usable cores, {host['os']}, Python {host['python']}; {libraries}."


def conditions_lines(found: Mapping[str, Any]) -> list[str]:
    """Date, load and machine, for the foot of a page."""
    load = f"{found['load_before']:.2f} processes were running on average in the minute before the first row"
    return [f"{found['date']}; {load} (0 is an idle machine).", "", host_line(found["host"])]


def use_cores(count: int) -> None:
    """Keep this process and all it starts to `count` cores: every tool then sees the same machine."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def write_results(out: Path, found: Mapping[str, Any], page: Sequence[str]) -> None:
    """Write a result as JSON and, beside it, as Markdown; print the page."""
    text = "\n".join(page) + "\n"
    write_file(out, (json.dumps(found, indent=1) + "\n").encode())
    write_file(out.with_suffix(".md"), text.encode())
    print(text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def copy_data(source: Path, folder: Path, images: int | None) -> Path:
    """A data set in YOLO layout, copied, because Ultralytics writes caches into it. Returns its YAML.

    images: of each split, in the order of their names; None for all.
    """
    described = yaml.safe_load((source / "data.yaml").read_text("utf-8"))
    splits = [split for split in ("train", "val", "test") if split in described]
    for split in splits:
        shown = Path(described[split])
        told = Path("labels", *shown.parts[1:])
        (folder / shown).mkdir(parents=True)
        (folder / told).mkdir(parents=True)
        for image in sorted((source / shown).iterdir())[:images]:
            shutil.copyfile(image, folder / shown / image.name)
            label = told / f"{image.stem}.txt"
            if (source / label).is_file():  # an image with nothing in it may have none
                shutil.copyfile(source / label, folder / label)
    file = folder / "data.yaml"
    kept = {key: described[key] for key in (*splits, "names")}
    file.write_text(yaml.safe_dump({"path": str(folder), **kept}), "utf-8")
    return file


def ultralytics_environment(folder: Path) -> dict[str, str]:
    """The environment in which Ultralytics installs, downloads and reports nothing; its settings go to `folder`."""
    settings = folder / "Ultralytics"
    settings.mkdir(parents=True)
    # A font that is there is not downloaded. Nothing is drawn with it.
    (settings / "Arial.ttf").touch()
    environment = {
        **os.environ,
        "YOLO_CONFIG_DIR": str(folder),
        "YOLO_OFFLINE": "True",
        "YOLO_AUTOINSTALL": "False",
        "MPLCONFIGDIR": str(folder),
        "PYTHONHASHSEED": "0",
    }
    # Its first start writes its settings, and says so on stdout: not in anybody's measured time.
    yolo = Path(sys.executable).with_name("yolo")
    subprocess.run([yolo, "settings", "sync=False"], env=environment, check=True, capture_output=True)
    return environment


def without_folders(text: str, *folders: Path) -> str:
    """A message of somebody else's without the folders of this machine."""
    known = (*folders, HERE.parent, Path(sys.prefix), Path.home())
    for folder in sorted({str(path) for path in known}, key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
    return text
