"""What a classifier is when it runs: its bundle, its graphs, its predictor and its uncertainty.

It needs numpy and ONNX Runtime. It knows no HTTP, no torch and no training loop.
"""
