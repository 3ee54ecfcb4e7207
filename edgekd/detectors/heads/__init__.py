"""Heads of ONNX detectors: description, its completion from the graph, and decoding as part of the graph."""
