"""Texts for people on bundles, their signatures, and their engines on devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edgekd.commands.cli.tables import megabytes, print_refused, print_table, rate_text

if TYPE_CHECKING:
    from edgekd.commands.inspect import Inspected
    from edgekd.commands.keygen import NewKey
    from edgekd.deploy.delta import DeltaResult
    from edgekd.deploy.signing.signed import Verified


def print_engine(result: Mapping[str, Any]) -> None:
    """Print the result of `edgekd engine`, of a device or of a fleet."""
    if "boards" in result:
        print_fleet(result)
        return
    device, engine, tested, timed = (result[key] for key in ("device", "engine", "self_test", "bench"))
    where = device["model"] or device["cpu"] or "an unidentified device"
    mode = f", power mode {device['power_mode']['name'] or device['power_mode']['id']}" if device["power_mode"] else ""
    upload = result["upload"]
    print(f"{result['name']} for {result['target']} on {device['name']}: {where}{mode}")
    if result["fits"] is None:
        print(f"not confirmed to be a {result['target']}: the device does not report its model")
    print(f"sent {megabytes(upload['sent_bytes'])} of {megabytes(upload['bytes'])}; the rest was there")
    made = f"built in {engine['seconds']:.1f} s" if engine["changed"] else "was there"
    print(f"engine: {engine['file']}, {megabytes(engine['bytes'])}, {_version(result['runtime'])}, {made}")
    for line in _precision_lines(engine):
        print(line)
    if result["tuning"]:
        print(_tuned_text(result["tuning"]))
    drift = (f"{part} {tested['error'][part]:.4f} of {tested['tolerance'][part]:.4f}" for part in ("boxes", "scores"))
    print(f"self-test: passed on {tested['frames']} frames; drift, of what is allowed: {', '.join(drift)}")
    columns = ("p50", "p90", "p99", "mean", "min")
    print_table(["ms", *columns], [["engine", *(f"{timed['inference_ms'][column]:.2f}" for column in columns)]])
    basis_text = f"measured on {where}" if result["basis"] == "measured" else "rehearsed: nothing was computed"
    print(f"{rate_text(timed['fps'])} of the engine alone over {timed['iterations']} runs, {basis_text}")
    print_refused(timed["refused"])
    print(f"in service: slot {engine['slot']}" if result["activated"] else "not put into service: --activate does that")


def _precision_lines(engine: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines on the precision of an engine's layers."""
    layers = engine["layers"] or {}
    if layers:
        yield f"layers: {', '.join(f'{count} {kind}' for kind, count in layers.items())}"
    if engine["float_layers"]:
        yield f"in float, although INT8 in the graph: {len(engine['float_layers'])} layers"
    if "dla" in layers and engine["missing_scales"] is not None:
        missing = len(engine["missing_scales"])
        yield (
            f"DLA: {missing} activations without a scale; INT8 and FP16 look alike in the list of its layers: --tune "
            "compares with an FP16 engine"
        )


def _tuned_text(tuning: Mapping[str, Any]) -> str:
    """Return a line that compares the choice of `--tune` with the engine as shipped."""
    form = {name: tuning[name] for name in ("source", "float_layers")}
    chosen = next(each for each in tuning["candidates"] if {name: each[name] for name in form} == form)
    shipped, ms = tuning["candidates"][0]["ms"]["p50"], chosen["ms"]["p50"]
    what = "all layers in float" if form["source"] == "float" else f"{len(form['float_layers'])} layers in float"
    if chosen is tuning["candidates"][0]:
        what = f"INT8 as shipped stays; of {len(tuning['candidates']) - 1} others none is faster and passes"
    low, high = chosen["ms"]["interval"]
    text = f"tuned: {what}; {ms:.2f} ms, shipped {shipped:.2f} ms, ratio {low:.3f} to {high:.3f}"
    if scored := tuning["accuracy"]:
        text += f"; mAP50-95 {scored['map50_95']:.4f} on {scored['images']} images"
    return text


def print_fleet(result: Mapping[str, Any]) -> None:
    """Print the result of `edgekd engine --fleet`."""
    print(f"{result['name']} for {result['target']}, the engine alone")
    header = ["board", "p50 ms", "p90 ms", "p99 ms", "FPS", "layers", "power mode", "system", "runtime", ""]
    print_table(header, [_board_row(board) for board in result["boards"]])
    failed = [board for board in result["boards"] if board["error"]]
    for board in failed:
        print(f"{board['name']}: {board['error']['text']}")
    count = len(result["boards"])
    print(f"{count - len(failed)} of {count} boards passed; all of it: {result['out']}")


def print_profiled(result: Mapping[str, Any]) -> None:
    """Print the result of `edgekd profile`."""
    print(f"{result['target']}, {result['precision']}: {result['measured']}")
    columns = ("p50", "p90", "p99", "mean", "min")
    rows = [[each["graph"], *(f"{each['inference_ms'][name]:.2f}" for name in columns)] for each in result["networks"]]
    print_table(["ms", *columns], rows)
    print(f"for `edgekd predict MODEL --target {result['target']} --table`: {result['table']}")


def _board_row(board: Mapping[str, Any]) -> list[str]:
    found = board["result"]
    if found is None:
        return [board["name"], *["-"] * 8, "FAILED"]
    times, device, mode = found["bench"]["inference_ms"], found["device"], found["device"]["power_mode"]
    jetpack = f"JetPack {board['jetpack']}, " if board["jetpack"] else ""
    return [
        board["name"],
        *(f"{times[column]:.2f}" for column in ("p50", "p90", "p99")),
        "-" if (fps := found["bench"]["fps"]) is None else f"{fps:.1f}",
        ", ".join(f"{count} {kind}" for kind, count in (found["engine"]["layers"] or {}).items()) or "unknown",
        str(mode["name"] or mode["id"]) if mode else "-",
        f"{jetpack}L4T {device['l4t']}" if device["l4t"] else device["os"] or "-",
        _version(found["runtime"]),
        f"{found['basis']}, kept of {board['measured_at']}" if board["kept"] else found["basis"],
    ]


def _version(runtime: Mapping[str, Any]) -> str:
    return f"{runtime['name']} {runtime['version']}"


def print_inspected(inspected: Inspected) -> None:
    """Print the result of `edgekd inspect`."""
    manifest = inspected.manifest
    evidence, target, preprocess = manifest.evidence, manifest.target, manifest.detector["preprocess"]
    print(f"{inspected.bundle.name}: {manifest.name} for {target.name} ({target.compatible}), every hash right")
    print(f"made by {manifest.created_by}, recipe {manifest.lineage.recipe}, counter {manifest.counter}")
    print(f"{inspected.signatures or 'no'} signatures; `edgekd verify` says whose")
    size = f"{preprocess['width']}x{preprocess['height']}"
    print(f"input {size} {preprocess['color']}, {len(manifest.detector['classes'])} classes")
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
    counted = "counter" if result.kind == "bundle" else "version"
    until = f", expires {result.expires}" if result.expires else ""
    print(f"{result.file}: {result.kind} {result.identity[:16]}, {counted} {result.version}{until}")
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
        print("whole; signatures were compared with no trust file and no key")
