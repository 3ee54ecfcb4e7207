"""Runtimes that compile and run an ONNX graph: one file each."""
