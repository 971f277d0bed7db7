"""Operators: each file lowers a family of ONNX operators to launches of kernels."""
