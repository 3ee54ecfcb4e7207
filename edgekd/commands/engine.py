"""`edgekd engine`: build, test and time a bundle's engine on a camera, or on a fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from edgekd.builds.run_progress import recorded
from edgekd.commands.arguments import path_or_none, required_signatures
from edgekd.commands.options import (
    AgentPath,
    AllowUnsigned,
    Bundle,
    Interpreter,
    Iterations,
    PublicKeys,
    Runtime,
    Seconds,
    State,
    StepTimeout,
    TrustFile,
)
from edgekd.commands.parameter import Option
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.deploy import engine as devices
from edgekd.deploy import fleet as fleets
from edgekd.deploy.devices.named import device_named
from edgekd.deploy.engine_report import InstallReport


def engine(
    bundle: Bundle,
    *,
    device: Annotated[str | None, Option("local, null or ssh://[USER@]HOST[:PORT].", group="Device")] = None,
    fleet: Annotated[
        str | Path | None, Option("A .toml that lists boards: all of them, at once.", group="Device")
    ] = None,
    runtime: Runtime = None,
    activate: Annotated[bool, Option("Put it into service when it has passed.")] = False,
    state: State = None,
    python: Interpreter = None,
    agent: AgentPath = None,
    trust: TrustFile = None,
    keys: PublicKeys = (),
    allow_unsigned: AllowUnsigned = False,
    iterations: Iterations = 200,
    seconds: Seconds = 5.0,
    timeout: StepTimeout = 3600.0,
    tune: Annotated[bool, Option("Keep layers in float that are faster so on the device.")] = False,
    builds: Annotated[int, Option("Engines that --tune tries besides INT8 and float.", minimum=0)] = 4,
    data: Annotated[
        str | Path | None, Option("Score what --tune chose on the bundle's data set.", group="Input")
    ] = None,
    out: Annotated[
        str | Path | None, Option("Folder of a fleet's results. Default: runs/BUNDLE-fleet.", group="Output")
    ] = None,
    fresh: Annotated[bool, Option("Keep what boards of a fleet gave before.", inverse="--resume")] = False,
    progress: Progress = SILENT,
) -> InstallReport | fleets.FleetReport:
    """Build, test and time a bundle's engine on a device, or on all boards of a fleet; activate it with `activate`.

    The bundle is verified first, with its signatures if `trust` or `keys` are given. Only then, or with
    `allow_unsigned`, a camera runs the agent in the bundle. Otherwise, and always on this machine, the agent of this
    edgekd runs.

    Raises SpecError, BundleError, HashError, SignatureError, DeviceError, and the errors of the agent. The command:
    `edgekd engine`.
    """
    _require_one(device, fleet, activate, out)
    if data and not tune:
        raise SpecError("--data goes with --tune", fix="leave it out: what is shipped was scored when it was built")
    job = devices.EngineJob(
        bundle=Path(bundle),
        device=device_named(device or "null"),
        runtime=runtime,
        activate=activate,
        state=state,
        python=python,
        agent=agent,
        required=required_signatures(trust, keys),
        allow_unsigned=allow_unsigned,
        iterations=iterations,
        seconds=seconds,
        timeout_s=timeout,
        tune=tune,
        builds=builds,
        data=path_or_none(data),
    )
    if fleet is None:
        return devices.run(job, progress)
    folder = path_or_none(out) or Path("runs") / f"{job.bundle.stem}-fleet"
    boards = fleets.load_fleet(Path(fleet))
    with recorded(folder, "fleet", job.bundle.name, None, progress) as progress:
        return fleets.run(fleets.FleetJob(boards, job, folder, fresh), progress)


def _require_one(device: str | None, fleet: str | Path | None, activate: bool, out: str | Path | None) -> None:
    """Raise SpecError unless there is either a device or a fleet, with suitable options."""
    if (device is None) == (fleet is None):
        found = "both" if device else "neither"
        raise SpecError("engine: where", expected="--device or --fleet", found=found, fix="--device ssh://HOST")
    if fleet and activate:
        fix = "see what the fleet gives, then call each board with --device and --activate"
        raise SpecError("--activate goes with one --device: a fleet is measured", fix=fix)
    if out and not fleet:
        raise SpecError("--out goes with --fleet", fix="leave it out: one device's result is what is printed")
