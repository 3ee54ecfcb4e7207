"""Targets: their specifications, compatibility of graphs with them, predictions of latency and energy."""
