"""ONNX graphs: how they are encoded, checked, extended with nodes and run by ONNX Runtime.

It knows no bundle and no image.
"""
