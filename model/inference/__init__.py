"""The predictor: ONNX Runtime over the graphs of a bundle.

It knows no HTTP and does not batch the requests of several callers.
"""
