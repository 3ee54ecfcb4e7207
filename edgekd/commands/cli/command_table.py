"""The table of commands: group, help, examples, and the function behind each."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

CommandGroup = Literal["Make", "Measure", "Ship", "Operate"]
GROUPS: tuple[CommandGroup, ...] = get_args(CommandGroup)


class Command(NamedTuple):
    """A command.

    Args:
        group: Heading under which help lists the command.
        summary: One sentence, short enough for its line in the list of commands.
        examples: Complete calls.
        details: Further sentences, for the command's own help.
        function: The function behind it, as MODULE.FUNCTION of `edgekd.commands`; by default both have the name of the
            command.
        run_name: Name of a run in `--log`, a format string over the parameters; None for a command without `--log`.
    """

    group: CommandGroup
    summary: str
    examples: tuple[str, ...]
    details: str = ""
    function: str | None = None
    run_name: str | None = None


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "Make",
        "Build a bundle from the detector that comes with edgekd.",
        ("edgekd demo", "edgekd demo --target orin-nano --out runs/demo-orin"),
        "It builds for rendered street scenes, which come with edgekd, too. Nothing is downloaded.",
    ),
    "build": Command(
        "Make",
        "Build a bundle for a target from a trained detector.",
        (
            "edgekd build best.pt",
            "edgekd build yolo11n.pt --data coco --target xavier --max-size 5MB --keep 99%",
            "edgekd build yolo11n.pt --data coco --search --keep 98% --max-size 3MB --time 8h",
            "edgekd build detector.onnx --data data.yaml --target orin-nano --sign release.key",
        ),
        "Compress, score, compile, time and pack it. The same command continues a build that was stopped.",
        run_name="build {model.stem} for {target}",
    ),
    "quantize": Command(
        "Make",
        "Quantize a detector or another ONNX network.",
        (
            "edgekd quantize detector.onnx --data coco",
            "edgekd quantize detector.onnx --data coco --keep 99%",
            "edgekd quantize network.onnx --data frames --max-size 2MB",
        ),
        "Write its graph, packed graph and plan for no particular target, and measure the loss.",
    ),
    "prune": Command(
        "Make",
        "Remove the channels that cost the least accuracy.",
        (
            "edgekd prune yolo11n.pt --data coco --ratio 30%",
            "edgekd prune yolo11n.pt --data coco --target xavier --min-fps 60",
        ),
        "The pruned detector is timed, so that it is known to be faster. Train it afterwards: `edgekd distill`.",
    ),
    "factorize": Command(
        "Make",
        "Replace layers by low-rank products where that is faster.",
        ("edgekd factorize yolo11n.pt --data coco", "edgekd factorize yolo11n.pt --data coco --energy 97%"),
        "Train the result afterwards: `edgekd distill`.",
    ),
    "distill": Command(
        "Make",
        "Train a student detector on labels and a teacher's outputs.",
        (
            "edgekd distill yolo11x.pt yolo11n.pt --data coco --epochs 50",
            "edgekd distill yolo11n.pt runs/yolo11n-pruned/pruned.pt --data coco --time 60",
        ),
        "Both are scored at the end. The same command continues a training that was stopped.",
        run_name="distill {student} from {teacher.name}",
    ),
    "adapt": Command(
        "Make",
        "Adapt a bundle to night, fog or another lens.",
        (
            "edgekd adapt detector.edgekd --frames fog --data coco --name fog",
            "edgekd adapt detector.edgekd --frames night --data coco --name night --sign release.key",
        ),
        "It takes frames without labels, and writes a variant and the delta that leads to it.",
    ),
    "convert": Command(
        "Make",
        "Convert a detector or bundle to another format.",
        (
            "edgekd convert detector.edgekd --to openvino",
            "edgekd convert yolo11n.pt --to ncnn --precision fp16",
            "edgekd convert detector.edgekd --to onnx --opset 17 --out detector.onnx",
        ),
        "INT8 layers keep their scales. The result is compared with its source before it is written.",
    ),
    "describe": Command(
        "Make",
        "Describe how a model's outputs become detections.",
        ("edgekd describe detector.onnx", "edgekd describe detector.onnx --head yolox --json"),
        "The text is a file for --head. Comments in it say what the graph does not confirm.",
    ),
    "eval": Command(
        "Measure",
        "Score a detector or bundle by COCO's metrics.",
        (
            "edgekd eval detector.edgekd --data coco",
            "edgekd eval yolo11n.pt --data coco --split test",
            "edgekd eval detector.onnx --data coco --tail 0.01 --json",
        ),
        "ONNX Runtime runs the graph on the CPU, over a labelled split.",
        function="evaluate.score_model",
    ),
    "bench": Command(
        "Measure",
        "Measure latency, throughput, energy and cost here.",
        (
            "edgekd bench detector.onnx",
            "edgekd bench detector.edgekd --against yolo11n.onnx --frames images",
            "edgekd bench detector.edgekd --minutes 20 --report run.html",
        ),
        "Time the engine alone and the way from camera to detections; report percentiles and their uncertainty.",
    ),
    "predict": Command(
        "Measure",
        "Predict latency and energy on a target, with intervals.",
        (
            "edgekd predict detector.onnx --target xavier --precision int8",
            "edgekd predict detector.onnx --target orin-nano --table orin-nano.toml",
        ),
        "Nothing is measured: the result follows from the graph and the target's figures.",
        function="predict.predict_latency",
    ),
    "profile": Command(
        "Measure",
        "Time networks on a device, to correct predictions.",
        (
            "edgekd profile detector.edgekd --device ssh://camera --out xavier.toml --key release.pub",
            "edgekd profile small.edgekd large.edgekd --device ssh://camera --out xavier.toml",
        ),
        "The table goes to `edgekd predict --table`.",
    ),
    "check": Command(
        "Measure",
        "Find what a target cannot run, or runs slowly.",
        ("edgekd check detector.onnx --target xavier", "edgekd check yolo11n.pt --target xavier --dla"),
        "Each finding says what to change. An ONNX file takes a second, and no PyTorch.",
        function="check.check_model",
    ),
    "report": Command(
        "Measure",
        "Explain where a build lost accuracy, as an HTML page.",
        ("edgekd report runs/first", "edgekd report runs/first --images 4 --out loss.html"),
        "The page shows detections, classes, layers and training.",
        function="report.analyse",
    ),
    "compare": Command(
        "Measure",
        "Compare two builds: accuracy, sizes, times, stages.",
        ("edgekd compare runs/first runs/small", "edgekd compare runs/first runs/small --json"),
    ),
    "ui": Command(
        "Measure",
        "Watch and compare builds on a page in the browser.",
        ("edgekd ui", "edgekd ui runs/nightly --port 0"),
        "It shows builds, searches and fleets while they run, to this machine alone, until Ctrl-C.",
    ),
    "inspect": Command(
        "Ship",
        "Verify a bundle and list its contents.",
        ("edgekd inspect detector.edgekd", "edgekd inspect detector.edgekd --json"),
    ),
    "keygen": Command(
        "Ship",
        "Create a key pair to sign with.",
        ("edgekd keygen release", "edgekd keygen release --out keys --encrypt"),
        "NAME.key is private, and readable for its owner alone; NAME.pub is for everybody.",
    ),
    "sign": Command(
        "Ship",
        "Sign a bundle or a trust file.",
        (
            "edgekd sign detector.edgekd --key release.key",
            "edgekd sign detector.edgekd --key release.key --out signed.edgekd",
        ),
    ),
    "verify": Command(
        "Ship",
        "Verify a bundle or trust file, and its signatures.",
        ("edgekd verify signed.edgekd --key release.pub", "edgekd verify signed.edgekd --trust trust.json"),
    ),
    "trust": Command(
        "Ship",
        "Create a trust file: the keys that cameras accept.",
        (
            "edgekd trust trust.toml --key root.key",
            "edgekd trust trust.toml --out trust-2.json --previous trust-1.json --key root.key",
        ),
        "It is signed with the keys that are at hand.",
    ),
    "pack": Command(
        "Ship",
        "Repack a bundle with changes, or for a firmware system.",
        (
            "edgekd pack detector.edgekd --out newer.edgekd --version-counter 8",
            "edgekd pack detector.edgekd --out measured.edgekd --measured camera.jsonl",
            "edgekd pack detector.edgekd --out detector.raucb --firmware-key rauc.key --firmware-cert rauc.pem",
        ),
        "Firmware systems are RAUC, SWUpdate, Mender and OCI registries.",
    ),
    "delta": Command(
        "Ship",
        "Write the delta from one bundle to another.",
        (
            "edgekd delta old.edgekd new.edgekd --out update.edgekd-delta",
            "edgekd delta fog-1.edgekd fog-2.edgekd --out fog.edgekd-delta --json",
        ),
        "A camera that has the old bundle installs it by `agent.pyz install`.",
    ),
    "engine": Command(
        "Operate",
        "Build, test and time an engine on a camera or a fleet.",
        (
            "edgekd engine signed.edgekd --device null",
            "edgekd engine signed.edgekd --device ssh://camera --key release.pub --activate",
            "edgekd engine signed.edgekd --fleet fleet.toml --key release.pub",
        ),
        "The device `null` is a rehearsal: it takes every step and computes nothing.",
    ),
    "validate-report": Command(
        "Operate",
        "Judge a validation on hardware, and write its page.",
        ("edgekd validate-report result.json", "edgekd validate-report result.json --out verdict.html"),
    ),
    "targets": Command(
        "Operate",
        "List the targets, or explain one with its sources.",
        ("edgekd targets", "edgekd targets xavier"),
    ),
    "doctor": Command(
        "Operate",
        "List what works here, and how to add what is missing.",
        ("edgekd doctor", "edgekd doctor --json"),
        "It looks for extras, runtimes and devices.",
    ),
}
"""Commands by name, in the order in which help lists them within their groups."""
