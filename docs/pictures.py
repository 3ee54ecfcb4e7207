"""Make pictures of real runs. No test compares them, because each run differs.

`python docs/pictures.py` makes those of README.md: the terminal, and the report in a browser. It runs `edgekd demo`,
which reuses the stages in runs/demo. It needs Chromium, and an idle machine, because the pictures show times.
`python docs/pictures.py yolo11n.pt DATA` quantizes and prunes that detector, and draws its layers.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from layer_charts import plan_chart, widths_chart
from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
CHROMIUM = "/usr/bin/chromium"
COLUMNS = 100  # characters; wider text is hard to read in a README
WIDTH, HEIGHT = 1200, 940  # px, of the report's picture
OTHER_SECTIONS_REMOVED = """
for (const section of document.querySelectorAll("section"))
    if (section.querySelector("h2").textContent !== "Sample detections") section.remove()
"""
PLAN_SIZE = "1.35MB"  # an eighth of yolo11n's float file
RATIO = 0.5  # share of the multiply-adds that pruning removes
FRAMES = 24  # for calibration and importance: enough to tell layers apart, within minutes
QUALITY = 82  # percent, of the JPEG: below 300 kB
FONTS = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)  # removed, because rich loads them from a server


def terminal(command: list[str], folder: Path = ROOT) -> str:
    """Run a command in a pseudo-terminal and return its standard output; progress, on standard error, is dropped.

    Raises SystemExit if the command fails.
    """
    ours, its = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=its, stderr=subprocess.DEVNULL, env=environment, cwd=folder)
    os.close(its)
    chunks = []
    try:
        while chunk := os.read(ours, 65536):
            chunks.append(chunk)
    except OSError:
        pass  # Linux raises this when the command has closed the terminal
    os.close(ours)
    if process.wait():
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return b"".join(chunks).decode().replace("\r\n", "\n")


def terminal_picture(commands: Iterable[tuple[str, str]]) -> str:
    """Return an SVG of a terminal after commands, each with its output."""
    console = Console(record=True, width=COLUMNS, file=Path(os.devnull).open("w"))  # noqa: SIM115
    for typed, output in commands:
        console.print(Text.assemble(("$ ", "bold green"), (typed.rstrip(), "bold")))
        console.print(Text.from_ansi(output))
    return console.export_svg(title="", code_format=FONTS.sub("", CONSOLE_SVG_FORMAT), unique_id="edgekd")


def report_picture(report: Path, picture: Path) -> None:
    """Take a picture of a report, its head and its sample detections, in Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(report.absolute().as_uri())
        page.evaluate(OTHER_SECTIONS_REMOVED)
        page.screenshot(path=picture, type="jpeg", quality=QUALITY)
        browser.close()


def plan_picture(model: Path, data: Path, folder: Path) -> str:
    """Quantize a detector for a size, on training images without labels, and return the chart of its plan."""
    from edgekd import convert, quantize
    from edgekd.compress.quantization.plan import load_plan
    from edgekd.data.dataset import load_dataset

    graph, frames = folder / "graph.onnx", folder / "frames"
    convert(model, "onnx", out=graph)
    frames.mkdir()
    for sample in load_dataset(data).split("train").samples[:FRAMES]:
        (frames / sample.image.name).symlink_to(sample.image.absolute())
    quantize(graph, frames, recipe="mixed", max_size=PLAN_SIZE, out=folder / "quantized")
    return plan_chart(f"Plan of {model.stem} for {PLAN_SIZE}", load_plan(folder / "quantized" / "plan.toml"))


def widths_picture(model: Path, data: Path, folder: Path) -> str:
    """Prune a detector, and return the chart of its channels."""
    from edgekd.compress.steps import Prune
    from edgekd.detectors.ultralytics.prune import prune_detector

    step = Prune(RATIO, images=FRAMES, batch=4)
    done = prune_detector(model, folder / "pruned.pt", data, step)
    return widths_chart(f"Channels of {model.stem}, pruned by {RATIO:.0%}", done.widths, done.multiply_adds)


def layer_pictures(model: Path, data: Path) -> None:
    """Write the charts of a detector's layers."""
    with TemporaryDirectory() as folder:
        for name, picture in (("plan", plan_picture), ("pruned", widths_picture)):
            (PICTURES / f"{name}.svg").write_text(picture(model, data, Path(folder)), "utf-8")


def run_pictures() -> None:
    """Write the pictures of a run of the demo."""
    output = terminal([sys.executable, "-m", "edgekd", "demo"])
    (PICTURES / "terminal.svg").write_text(terminal_picture([("edgekd demo", output)]), "utf-8")
    report_picture(ROOT / "runs" / "demo" / "report.html", PICTURES / "report.jpg")


if __name__ == "__main__":
    layer_pictures(*map(Path, sys.argv[1:])) if sys.argv[1:] else run_pictures()
