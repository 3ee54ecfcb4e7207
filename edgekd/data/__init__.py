"""Data sets, calibration sets, pseudo-labels, and domain shifts of images."""
