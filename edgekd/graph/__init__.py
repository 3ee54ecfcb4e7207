"""ONNX graphs: view, opset and float16 conversion, NVFP4 weights, raw input, batches, sessions and runtimes."""
