"""The stages of a build, one file each: a declaration with its code version, a result, and the function `run`."""
