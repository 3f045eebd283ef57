"""ONNX graphs: how they are checked and run by ONNX Runtime, and what is fed to those of a bundle.

It knows no bundle and no image.
"""
