"""The commands, one file each: the function in it is the Python API, and declares the options of the command line."""
