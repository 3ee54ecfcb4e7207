"""Printed text about bundles, their signatures, and their engines on devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgekd.commands.cli.tables import megabytes, print_refused, print_table, rate_text

if TYPE_CHECKING:
    from edgekd.agent.engines.records import RuntimeVersion
    from edgekd.commands.inspect import Inspected
    from edgekd.commands.keygen import NewKey
    from edgekd.commands.profile import ProfileResult
    from edgekd.core.benchmark import Stats
    from edgekd.deploy.delta import DeltaResult
    from edgekd.deploy.engine_report import EngineReport, InstallReport, TuningReport
    from edgekd.deploy.fleet import BoardReport, FleetReport
    from edgekd.deploy.signing.signed import Verified


def print_engine(result: InstallReport | FleetReport) -> None:
    """Print the result of `edgekd engine`, of a device or of a fleet."""
    from edgekd.deploy.fleet import FleetReport

    print_fleet(result) if isinstance(result, FleetReport) else _print_device(result)


def _print_device(result: InstallReport) -> None:
    device, engine, tested, timed = result.device, result.engine, result.self_test, result.bench
    where = device.model or device.cpu or "an unidentified device"
    mode = f", power mode {device.power_mode.name or device.power_mode.id}" if device.power_mode else ""
    print(f"{result.name} for {result.target} on {device.name}: {where}{mode}")
    if result.fits is None:
        print(f"not confirmed to be a {result.target}: the device does not report its model")
    print(f"sent {megabytes(result.upload.sent_bytes)} of {megabytes(result.upload.bytes)}; the rest was there")
    built = f"built in {engine.seconds or 0:.1f} s" if engine.changed else "was there"
    print(f"engine: {engine.file}, {megabytes(engine.bytes or 0)}, {_version(result.runtime)}, {built}")
    for line in _precision_lines(engine):
        print(line)
    if result.tuning:
        print(_tuned_text(result.tuning))
    errors = ((part, getattr(tested.error, part), getattr(tested.tolerance, part)) for part in ("boxes", "scores"))
    drift = ", ".join(f"{part} {error:.4f} of {limit:.4f}" for part, error, limit in errors)
    print(f"self-test: passed on {tested.frames} frames; drift, of what is allowed: {drift}")
    print_table(["ms", *_COLUMNS], [["engine", *_times(timed.inference_ms)]])
    basis = f"measured on {where}" if result.basis == "measured" else "rehearsed: nothing was computed"
    print(f"{rate_text(timed.fps)} of the engine alone over {timed.iterations} runs, {basis}")
    print_refused(timed.refused)
    print(f"in service: slot {engine.slot}" if result.activated else "not put into service: --activate does that")


_COLUMNS = ("p50", "p90", "p99", "mean", "min")


def _times(times: Stats) -> list[str]:
    return [f"{getattr(times, column):.2f}" for column in _COLUMNS]


def _precision_lines(engine: EngineReport) -> Iterator[str]:
    """Yield lines on the precision of an engine's layers."""
    layers = engine.layers or {}
    if layers:
        yield f"layers: {', '.join(f'{count} {kind}' for kind, count in layers.items())}"
    if engine.float_layers:
        yield f"in float, although INT8 in the graph: {len(engine.float_layers)} layers"
    if "dla" in layers and engine.missing_scales is not None:
        yield (
            f"DLA: {len(engine.missing_scales)} activations without a scale; INT8 and FP16 look alike in the list of "
            "its layers: --tune compares with an FP16 engine"
        )


def _tuned_text(tuning: TuningReport) -> str:
    """Return a line that compares the choice of `--tune` with the engine as shipped."""
    form = (tuning.source, tuning.float_layers)
    chosen = next((each for each in tuning.candidates if (each.source, each.float_layers) == form), None)
    what = "all layers in float" if tuning.source == "float" else f"{len(tuning.float_layers)} layers in float"
    if chosen is None or chosen.ms is None:
        return f"tuned: {what}"
    shipped, *others = tuning.candidates
    if chosen is shipped:
        what = f"INT8 as shipped stays; of {len(others)} others none is faster and passes"
    low, high = chosen.ms.interval
    shipped_ms = shipped.ms.p50 if shipped.ms else 0.0
    text = f"tuned: {what}; {chosen.ms.p50:.2f} ms, shipped {shipped_ms:.2f} ms, ratio {low:.3f} to {high:.3f}"
    if scored := tuning.accuracy:
        text += f"; mAP50-95 {scored.map50_95:.4f} on {scored.images} images"
    return text


def print_fleet(result: FleetReport) -> None:
    """Print the result of `edgekd engine --fleet`."""
    print(f"{result.name} for {result.target}, the engine alone")
    header = ["board", "p50 ms", "p90 ms", "p99 ms", "FPS", "layers", "power mode", "system", "runtime", ""]
    print_table(header, [_board_row(board) for board in result.boards])
    errors = {board.name: board.error for board in result.boards if board.error}
    for name, error in errors.items():
        print(f"{name}: {error.text}")
    count = len(result.boards)
    print(f"{count - len(errors)} of {count} boards passed; all of it: {result.out}")


def print_profiled(result: ProfileResult) -> None:
    """Print the result of `edgekd profile`."""
    print(f"{result.target}, {result.precision}: {result.measured}")
    print_table(["ms", *_COLUMNS], [[each.graph, *_times(each.times.inference_ms)] for each in result.networks])
    print(f"for `edgekd predict MODEL --target {result.target} --table`: {result.table}")


def _board_row(board: BoardReport) -> list[str]:
    found = board.result
    if found is None:
        return [board.name, *["-"] * 8, "FAILED"]
    times, device, mode, fps = found.bench.inference_ms, found.device, found.device.power_mode, found.bench.fps
    jetpack = f"JetPack {board.jetpack}, " if board.jetpack else ""
    return [
        board.name,
        *(f"{ms:.2f}" for ms in (times.p50, times.p90, times.p99)),
        "-" if fps is None else f"{fps:.1f}",
        ", ".join(f"{count} {kind}" for kind, count in (found.engine.layers or {}).items()) or "unknown",
        str(mode.name or mode.id) if mode else "-",
        f"{jetpack}L4T {device.l4t}" if device.l4t else device.os or "-",
        _version(found.runtime),
        f"{found.basis}, kept of {board.measured_at}" if board.kept else found.basis,
    ]


def _version(runtime: RuntimeVersion) -> str:
    return f"{runtime.name} {runtime.version}"


def print_inspected(inspected: Inspected) -> None:
    """Print the result of `edgekd inspect`."""
    manifest = inspected.manifest
    evidence, target, preprocess = manifest.evidence, manifest.target, manifest.detector["preprocess"]
    print(f"{inspected.bundle.name}: {manifest.name} for {target.name} ({target.compatible}), every hash right")
    if manifest.role:
        print(f"for cameras' --model {manifest.role} alone")
    print(f"made by {manifest.created_by}, recipe {manifest.lineage.recipe}, counter {manifest.counter}")
    print(f"{inspected.signatures or 'no'} signatures; `edgekd verify` says whose")
    size = f"{preprocess['width']}x{preprocess['height']}"
    values = preprocess.get("input", preprocess["color"])
    print(f"input {size} {values}, {len(manifest.detector['classes'])} classes")
    print(f"TensorRT {' to '.join(manifest.tensorrt) if manifest.tensorrt else 'not used'}")
    print(
        f"mAP50-95 {evidence.before.map50_95:.4f} -> {evidence.after.map50_95:.4f} on {evidence.images} images, "
        f"graph {megabytes(evidence.before.bytes)} -> {megabytes(evidence.after.bytes)} packed"
    )
    rows = [[entry.path, entry.role, str(entry.length), entry.sha256[:16]] for entry in manifest.files]
    print_table(["file", "role", "bytes", "sha256"], rows)


def print_key(key: NewKey) -> None:
    """Print the result of `edgekd keygen`."""
    encrypted = ", encrypted" if key.encrypted else ""
    print(f"key {key.key}\nprivate: {key.private}{encrypted}\npublic: {key.public}")


def print_delta(delta: DeltaResult) -> None:
    """Print the result of `edgekd delta`."""
    print(f"{delta.file}: {delta.bytes:,} bytes in place of {delta.new_bytes:,} ({delta.share:.1%})")
    print(f"from {delta.old[:16]} to {delta.new[:16]}")


def print_verified(result: Verified) -> None:
    """Print a bundle or trust file and its signatures."""
    counted = "version" if result.kind == "trust" else "counter"
    until = f", expires {result.expires}" if result.expires else ""
    print(f"{result.file}: {result.kind} {result.identity}, {counted} {result.version}{until}")
    for signature in result.signatures:
        print(f"signed by {signature.name or 'key'} {signature.key}")
    if not result.signatures:
        print("not signed")
    if file := result.firmware:
        signed, devices = "signed" if file.signed else "not signed", ", ".join(file.compatible)
        print(f"in a file for {file.system}, {result.bytes:,} bytes, {signed}; for {devices}")
    if result.trusted:
        print("trusted" if result.trust_version is None else f"trusted by trust file {result.trust_version}")
    else:
        whole = "" if result.kind == "delta" else "whole; "
        print(f"{whole}signatures were compared with no trust file and no key")
