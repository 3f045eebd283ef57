"""Turns a trained network into the files of a bundle: ONNX graphs, int8 graph, calibration.

Knows no training loop and no report.
"""
