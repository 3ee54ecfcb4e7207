"""Quantization of ONNX graphs: placement, ranges, plans, rounding, training."""
