"""Validation on hardware: engines of a bundle by every runtime of the device, and what they prove.

`process` runs one attempt, `coordinator` starts one process for each, `machine` reads the system, `evidence` is the
file that comes of it, checked, and `verdicts` the rules by which it confirms or refutes a claim.
"""
