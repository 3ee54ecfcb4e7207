"""Heads of ONNX detectors: their description, its completion from a graph, and decoding as part of the graph."""
