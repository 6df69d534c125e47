"""The ground floor: trainable models, their gradient graphs, and fuses, all as ONNX graphs."""
