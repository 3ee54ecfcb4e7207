"""Targets: their figures, the graphs that they can run, predictions of latency and energy."""
