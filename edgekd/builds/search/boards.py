"""Latency of a trial on a real board: the graph is packed, and an agent builds, tests and times its engine there."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from edgekd.builds.publish import pack_bundle
from edgekd.builds.run import BuildRecord
from edgekd.builds.search.leases import leased
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages.base import StageContext
from edgekd.builds.stages.trial import BOARD, BoardResult, Refusal
from edgekd.core.errors import BundleError, DeviceError, EngineRefusedError
from edgekd.core.progress import Progress
from edgekd.core.version import __version__
from edgekd.deploy.engine import REHEARSED, Contents, EngineJob, contents, install
from edgekd.deploy.engine_report import InstallReport
from edgekd.deploy.fleet import Board, device_of
from edgekd.hardware.target import to_dict

_NULL = "null"


def rehearsed(boards: Sequence[Board]) -> bool:
    """Return whether one of the boards is a null device, which computes nothing."""
    return any(_NULL in (board.device, board.runtime) for board in boards)


def time_on_board(record: BuildRecord, boards: Sequence[Board], context: StageContext) -> Stage[BoardResult | Refusal]:
    """Time the graph that ships on the first free board. boards: of one kind.

    The result is a Refusal if boards answer, but none can build the engine or passes its self-test. Raises DeviceError
    or BundleError if no board answers.
    """

    def work(folder: Path) -> BoardResult | Refusal:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
            request = replace(record.request, out=Path(scratch))
            packed = pack_bundle(context, replace(record, request=request))
            with contents(packed) as parts:
                try:
                    return _timed(boards, packed, parts, context.progress)
                except EngineRefusedError as error:
                    return Refusal(str(error))

    inputs = {
        "graph": record.shipped.sha256,
        "target": to_dict(record.request.target),
        "boards": sorted((asdict(board) for board in boards), key=lambda board: str(board["name"])),
        "edgekd": __version__,
    }
    return context.run(BOARD, inputs, work)


def _timed(boards: Sequence[Board], bundle: Path, parts: Contents, progress: Progress) -> BoardResult:
    """Return the timing of the first free board that answers.

    Raises EngineRefusedError if a board refused it and no other succeeded, else the last DeviceError or BundleError.
    """
    left = {board.name: board for board in boards}
    refused: EngineRefusedError | None = None
    while True:
        with leased("board", list(left)) as name:
            try:
                return _result(left[name], install(_job(left[name], bundle), parts, progress))
            except (BundleError, DeviceError) as error:
                progress.note(f"board {name}: {error}")
                del left[name]
                refused = error if isinstance(error, EngineRefusedError) else refused
                if not left:
                    raise refused or error from error


def _job(board: Board, bundle: Path) -> EngineJob:
    own = {name: getattr(board, name) for name in ("runtime", "state", "python", "agent")}
    return EngineJob(bundle, device_of(board), **own)


def _result(board: Board, report: InstallReport) -> BoardResult:
    energy = None if report.basis == REHEARSED or report.bench.energy is None else report.bench.energy.gross_mj
    return BoardResult(board.name, report.basis, report.bench.inference_ms.mean, energy)
