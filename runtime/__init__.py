"""Training on ONNX Runtime: optimizers, schedules, the step graph, data, and the loop that ties them together."""
