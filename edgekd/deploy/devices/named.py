"""Devices by name."""

from __future__ import annotations

from edgekd.core.errors import SpecError
from edgekd.deploy.devices import AgentDevice
from edgekd.deploy.signing.secrets import without_secrets


def device_named(name: str) -> AgentDevice:
    """Return the device `local`, `null` or `ssh://user@host:port`. Raises SpecError for another name."""
    if name == "local":
        from edgekd.deploy.devices.local import LocalDevice

        return LocalDevice()
    if name == "null":
        from edgekd.deploy.devices.null import NullDevice

        return NullDevice()
    from edgekd.deploy.devices.ssh import SCHEME, SshDevice, parse

    if name.startswith(SCHEME):
        return SshDevice(name, parse(name))
    fix = "name the runtime with --runtime" if name.startswith("local:") else None
    raise SpecError(f"--device {without_secrets(name)}", expected="local, null or ssh://[USER@]HOST[:PORT]", fix=fix)
