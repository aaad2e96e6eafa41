"""The endpoint: Open Inference Protocol V2 over ONNX Runtime, and the probe that measures with the same engine."""
