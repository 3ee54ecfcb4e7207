"""Detectors: one file per family, and the pure rules for feeding and decoding them."""
