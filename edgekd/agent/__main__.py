"""Entry point of the agent and of its archive. It parses on any Python, so that it can refuse an old one."""

import sys

if sys.version_info < (3, 8):  # noqa: UP036 the Python of the camera decides
    import json

    error = {
        "kind": "DeviceError",
        "what": "this Python is too old for the agent",
        "expected": "Python 3.8 or newer",
        "found": "Python " + ".".join(map(str, sys.version_info[:2])),
        "fix": "run the agent with a newer Python of the firmware",
        "cause": None,
    }
    print(json.dumps({"command": None, "ok": False, "error": error, "result": None}, sort_keys=True))
    sys.exit(1)

from edgekd.agent.cli import main

sys.exit(main())
