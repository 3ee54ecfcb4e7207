"""ONNX graphs: one view of them, float16, NVFP4, sessions."""
