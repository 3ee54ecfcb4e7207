"""edgekd: from a trained detector to a bundle for camera firmware."""

__version__ = "0.1.0"
