"""Several cameras in one service: capture, fair scheduling, detection, tracking and statistics.

The guide is docs/guides/several-cameras.md.
"""
