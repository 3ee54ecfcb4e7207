"""The version of edgekd.

Shared with the device: Python 3.8, standard library only.
"""

__version__ = "0.1.0"
