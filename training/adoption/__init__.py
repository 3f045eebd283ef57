"""Existing classifiers as bundles: an ONNX file or a torch module is cut, measured and published.

Knows ONNX graphs and labelled images; trains nothing.
"""
