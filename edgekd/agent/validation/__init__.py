"""Validation on hardware: claims judged by engines of a bundle, built by every runtime of the device.

`process` runs one attempt, `coordinator` starts a process for each, `machine` reads the system, `evidence` parses the
result file, and `verdicts` has the rules that confirm or refute a claim.
"""
