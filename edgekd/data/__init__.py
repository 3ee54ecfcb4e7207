"""Data sets, calibration sets."""
