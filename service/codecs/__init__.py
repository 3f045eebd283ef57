"""Formats of bodies: compression, forms, JSON, encoded images and Open Inference tensors.

Knows no request, no route and no model beyond the input size that it declares.
"""
