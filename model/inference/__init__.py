"""The predictor: ONNX Runtime over the two graphs of a bundle.

It knows no HTTP and does not batch the requests of several callers.
"""
