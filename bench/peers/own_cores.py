"""Keep ONNX Runtime to the cores of its process. By default it binds a thread to each core of the machine.

    python own_cores.py yolo ARGUMENTS

runs Ultralytics' command line with such sessions.
"""

import os
import sys
from typing import Any

import onnxruntime


class OwnCoresSession(onnxruntime.InferenceSession):  # type: ignore[misc]
    """A session with a thread per core of this process, or with fewer if the caller asks for fewer.

    With one thread there is no pool. Idle threads of a pool would spin and slow down the code that follows a run.
    """

    def __init__(self, path_or_bytes: Any, sess_options: Any = None, *more: Any, **named: Any) -> None:
        options = sess_options or onnxruntime.SessionOptions()
        cores = len(os.sched_getaffinity(0))
        options.intra_op_num_threads = min(options.intra_op_num_threads or cores, cores)
        super().__init__(path_or_bytes, options, *more, **named)


def keep_to_own_cores() -> None:
    """Replace `onnxruntime.InferenceSession` by OwnCoresSession for all libraries in this process."""
    onnxruntime.InferenceSession = OwnCoresSession


def main() -> None:
    keep_to_own_cores()
    sys.argv = sys.argv[1:]  # Ultralytics reads it at import
    from ultralytics.cfg import entrypoint

    entrypoint()


if __name__ == "__main__":
    main()
