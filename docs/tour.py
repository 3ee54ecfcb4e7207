"""Record the tour: run the commands of examples/tour/README.md, and draw the terminal for each section.

`python docs/tour.py CAMERA FOLDER` uses the output of `make camera` in the folder CAMERA, and the checkpoint and images
in ../shared. It works in FOLDER, where a later call reuses the stages of builds, and takes about 15 minutes. The
pictures show one run; a test compares their commands with those of the page.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from pictures import PICTURES, terminal, terminal_picture

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
PAGE = ROOT / "examples" / "tour" / "README.md"
BLOCK = re.compile(r"^```sh (?:run|camera)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:.*\\\n)*.+\n")  # with its continued lines
MARK = "\x1e"  # ASCII's record separator, which no program prints


def sections() -> list[list[str]]:
    """Return the commands of each section of the tour."""
    parts = PAGE.read_text("utf-8").split("\n## ")[1:]
    return [COMMAND.findall("".join(BLOCK.findall(part))) for part in parts]


def workplace(folder: Path, camera: Path) -> None:
    """Fill a folder with the files that the commands name, and put `edgekd` and `python` into it and the PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in set(folder.iterdir()) - {folder / "runs"}:
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    (folder / "build").mkdir()
    links = {"build/camera": camera, "examples": ROOT / "examples"}
    links |= {"yolo11n.pt": SHARED / "models" / "yolo11n.pt", "coco256": SHARED / "data" / "coco256"}
    for name, goal in links.items():
        (folder / name).symlink_to(goal.absolute())
    for name, arguments in (("edgekd", "-m edgekd "), ("python", "")):
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments}"$@"\n')
        (folder / name).chmod(0o755)
    os.environ["PATH"] = os.pathsep.join((str(folder), os.environ["PATH"]))


def main() -> None:
    camera, folder = (Path(argument).absolute() for argument in sys.argv[1:])
    workplace(folder, camera)
    commands = sections()
    # -m: with job control, as in a terminal, a job in the background can be interrupted.
    lines = ["set -em", "trap 'kill -INT %%' EXIT", "exec 2>errors.log"]
    lines += [f"printf '{MARK}'\n{command}" for part in commands for command in part]
    (folder / "tour.sh").write_text("\n".join(lines), "utf-8")
    outputs = iter(terminal(["bash", "tour.sh"], folder).split(MARK)[1:])
    for number, part in enumerate(commands, 1):
        picture = terminal_picture([(command, next(outputs)) for command in part])
        (PICTURES / f"tour-{number}.svg").write_text(picture, "utf-8")


if __name__ == "__main__":
    main()
