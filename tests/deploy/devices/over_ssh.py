"""A `loopback` camera with a test's bundle and state folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from loopback import Loopback

from edgekd.core.canonical import file_sha256
from edgekd.core.progress import SILENT, Progress
from edgekd.deploy.devices.connection import Upload
from edgekd.deploy.devices.ssh import SshDevice, parse
from edgekd.deploy.engine import UPLOAD, EngineJob, run


@dataclass(frozen=True)
class Camera:
    """A running camera, and a test's own state folder on it."""

    loopback: Loopback
    bundle: Path
    state: Path

    def device(self, port: int | None = None, **changed: Any) -> SshDevice:
        """Return the camera as edgekd's device, connected through the wire if there is one."""
        name = self.loopback.address(port)
        return replace(SshDevice(name, parse(name)), **changed)

    def job(self, device: SshDevice | None = None, **changed: Any) -> EngineJob:
        """Return the job that installs the bundle on that camera, with short timing."""
        told = {"runtime": "null", "state": str(self.state), "iterations": 3, "seconds": 0.0}
        return EngineJob(self.bundle, device or self.device(), **{**told, **changed})

    def put(self, device: SshDevice | None = None, state: Path | None = None, progress: Progress = SILENT) -> Upload:
        """Send the bundle only, and assert that no process is left running."""
        folder = str((state or self.state) / UPLOAD)
        with (device or self.device()).connect(None) as site:
            site.claim(folder)
            found = site.put(self.bundle, folder, [file_sha256(self.bundle)], progress)
        assert self.loopback.quiet() == []
        assert file_sha256(Path(found.path)) == file_sha256(self.bundle)
        return found

    def install(self, device: SshDevice | None = None, **changed: Any) -> dict[str, Any]:
        """Run the job, and assert that no process is left running."""
        found = asdict(run(self.job(device, **changed)))
        assert self.loopback.quiet() == []
        return found
