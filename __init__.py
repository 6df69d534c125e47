"""Trains PyTorch and Keras models on ONNX Runtime, and says beforehand where their gradients will explode."""
