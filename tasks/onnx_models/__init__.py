"""Shelf: ONNX files being rewritten, and what they cost to run."""
