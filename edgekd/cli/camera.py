"""Commands that work on a camera."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import (
    AgentThere,
    Bundle,
    Bundles,
    Iterations,
    Json,
    PythonThere,
    RuntimeThere,
    Seconds,
    StateThere,
    StepTimeout,
    new_progress,
)
from edgekd.cli.printing import print_engine, print_fleet, print_json, print_profiled
from edgekd.core.errors import SpecError


def engine(
    bundle: Bundle,
    device: Annotated[str | None, typer.Option(help="local, null or ssh://[USER@]HOST[:PORT].")] = None,
    fleet: Annotated[Path | None, typer.Option(help="A .toml that lists boards: all of them, at once.")] = None,
    runtime: RuntimeThere = None,
    activate: Annotated[bool, typer.Option("--activate", help="Put it into service when it has passed.")] = False,
    state: StateThere = None,
    python: PythonThere = None,
    agent: AgentThere = None,
    iterations: Iterations = 200,
    seconds: Seconds = 5.0,
    timeout: StepTimeout = 3600.0,
    tune: Annotated[bool, typer.Option("--tune", help="Leave in float the layers that are faster so there.")] = False,
    builds: Annotated[int, typer.Option(help="Engines that --tune tries besides INT8 and float.", min=0)] = 4,
    data: Annotated[Path | None, typer.Option(help="Score what --tune chose on the bundle's data set.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of a fleet's results. Default: runs/BUNDLE-fleet.")] = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Keep what boards of a fleet gave before.")] = True,
    as_json: Json = False,
) -> None:
    """Build, test and time a bundle's engine on a camera, or on a fleet; put it into service there if asked."""
    from edgekd.commands import engine as engine_module
    from edgekd.deploy.devices.named import device_named

    _require_one(device, fleet, activate, out)
    where = device_named(device or "null")
    if data and not tune:
        raise SpecError("--data goes with --tune", fix="leave it out: what is shipped was scored when it was built")
    job = engine_module.EngineJob(
        bundle, where, runtime, activate, state, python, agent, iterations, seconds, timeout, tune, builds, data
    )
    if fleet is None:
        (print_json if as_json else print_engine)(engine_module.run(job, new_progress()))
        return
    from edgekd.commands import fleet as fleets

    folder = out or Path("runs") / f"{bundle.stem}-fleet"
    found = fleets.run(fleets.FleetJob(fleets.load_fleet(fleet), job, folder, fresh=not resume), new_progress())
    (print_json if as_json else print_fleet)(found)
    if not found["passed"]:
        raise typer.Exit(1)


def profile(
    bundles: Bundles,
    device: Annotated[str, typer.Option(help="local or ssh://[USER@]HOST[:PORT].", show_default=False)],
    out: Annotated[Path, typer.Option(help="The table, a .toml; networks go beside it.", show_default=False)],
    target: Annotated[str | None, typer.Option(help="What the device is, where it does not say so itself.")] = None,
    runtime: RuntimeThere = None,
    state: StateThere = None,
    python: PythonThere = None,
    agent: AgentThere = None,
    iterations: Iterations = 200,
    seconds: Seconds = 5.0,
    timeout: StepTimeout = 3600.0,
    as_json: Json = False,
) -> None:
    """Time the networks of bundles on a device, as the table that predictions for its target are corrected by."""
    from edgekd.commands import profile as profile_module
    from edgekd.commands.engine import EngineJob
    from edgekd.deploy.devices.named import device_named

    where = device_named(device)
    usual = EngineJob(bundles[0], where, runtime, False, state, python, agent, iterations, seconds, timeout)
    found = profile_module.run(profile_module.ProfileJob(bundles, usual, out, target), new_progress())
    (print_json if as_json else print_profiled)(found)


def _require_one(device: str | None, fleet: Path | None, activate: bool, out: Path | None) -> None:
    """Raises SpecError unless it is said where, in one way, and only what goes with that."""
    if (device is None) == (fleet is None):
        found = "both" if device else "neither"
        raise SpecError("engine: where", expected="--device or --fleet", found=found, fix="--device ssh://HOST")
    if fleet and activate:
        fix = "see what the fleet gives, then call each board with --device and --activate"
        raise SpecError("--activate goes with one --device: a fleet is measured", fix=fix)
    if out and not fleet:
        raise SpecError("--out goes with --fleet", fix="leave it out: one device's result is what is printed")
