"""ONNX Runtime on the cores of its process. It binds a thread to each core of the machine where nobody asks otherwise.

    python own_cores.py yolo ARGUMENTS

runs Ultralytics' command line like that.
"""

import os
import sys
from typing import Any

import onnxruntime


class OwnCoresSession(onnxruntime.InferenceSession):  # type: ignore[misc]
    """A session with as many threads as this process has cores, or with fewer where its maker asks for fewer.

    With one thread there is no pool, whose idle threads would poll for work and take time from what follows a run.
    """

    def __init__(self, path_or_bytes: Any, sess_options: Any = None, *more: Any, **named: Any) -> None:
        options = sess_options or onnxruntime.SessionOptions()
        cores = len(os.sched_getaffinity(0))
        options.intra_op_num_threads = min(options.intra_op_num_threads or cores, cores)
        super().__init__(path_or_bytes, options, *more, **named)


def keep_to_own_cores() -> None:
    """Let every session that any library makes from now on be one of these."""
    onnxruntime.InferenceSession = OwnCoresSession


def main() -> None:
    keep_to_own_cores()
    sys.argv = sys.argv[1:]  # Ultralytics reads it when it is imported
    from ultralytics.cfg import entrypoint

    entrypoint()


if __name__ == "__main__":
    main()
