"""Commands that work on a camera."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekd.cli.options import Bundle, Json, new_progress
from edgekd.printing import print_engine, print_json


def engine(
    bundle: Bundle,
    device: Annotated[str, typer.Option(help="local, null or ssh://[USER@]HOST[:PORT].", show_default=False)],
    runtime: Annotated[str | None, typer.Option(help="What runs networks there. Default: the best it has.")] = None,
    activate: Annotated[bool, typer.Option("--activate", help="Put it into service when it has passed.")] = False,
    state: Annotated[str | None, typer.Option(help="Folder of the slots there. Default: /var/lib/edgekd.")] = None,
    python: Annotated[str | None, typer.Option(help="Interpreter there. Default: python3.")] = None,
    agent: Annotated[str | None, typer.Option(help="Path there of an agent to use in place of the bundle's.")] = None,
    iterations: Annotated[int, typer.Option(help="Time at least this many runs ...", min=1)] = 200,
    seconds: Annotated[float, typer.Option(help="... and at least this long.", min=0)] = 5.0,
    timeout: Annotated[float, typer.Option(help="Seconds that one step may take.", min=1)] = 3600.0,
    as_json: Json = False,
) -> None:
    """Build, test and time a bundle's engine on a camera, and put it into service if asked."""
    from edgekd import installing
    from edgekd.devices.named import device_named

    where = device_named(device)
    job = installing.EngineJob(bundle, where, runtime, activate, state, python, agent, iterations, seconds, timeout)
    (print_json if as_json else print_engine)(installing.run(job, new_progress()))
