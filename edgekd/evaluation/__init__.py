"""Accuracy, latency, throughput and cost of detectors, analysis of lost accuracy, and reports."""
