"""`edgekd ui`: a page in the browser on this machine, to watch builds and to compare them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from edgekd.commands.parameter import Argument, Option
from edgekd.commands.web.app import HOST, create_app, listen, serve
from edgekd.core.documents import Result
from edgekd.core.errors import SpecError
from edgekd.core.input_files import is_folder, shown_path
from edgekd.core.progress import SILENT, Progress

PORT = 8420
"""Default port; not registered with IANA for a common service."""


@dataclass(frozen=True)
class Served(Result):
    """A page that was served until Ctrl-C.

    Args:
        url: Address of the page.
        runs: The folder that it showed.
    """

    url: str
    runs: Path


def ui(
    runs: Annotated[str | Path, Argument("Folder with result folders, or one of them.")] = Path("runs"),
    *,
    port: Annotated[int, Option("Port on this machine; 0: a free one.", minimum=0, maximum=65535)] = PORT,
    progress: Progress = SILENT,
) -> Served:
    """Serve a page with builds, searches and fleets below a folder, on this machine alone, until Ctrl-C.

    The page shows their progress while they run, and compares two builds. Nothing is written or sent elsewhere. Raises
    SpecError if the folder does not exist, the port is in use, or Flask is missing. The command: `edgekd ui`.
    """
    root = Path(runs)
    if not is_folder(root):
        raise SpecError(f"{shown_path(root)}: no folder", fix="pass the folder of your results, such as runs")
    app = create_app(root)
    with listen(port) as listening:
        url = f"http://{HOST}:{listening.getsockname()[1]}/"
        progress.note(f"runs in {shown_path(root)}: {url}\nCtrl-C stops this page, and no build")
        serve(app, listening)
    return Served(url, root)
