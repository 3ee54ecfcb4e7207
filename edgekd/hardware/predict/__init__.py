"""Prediction of latency and energy on a device that is not at hand, with an interval."""
