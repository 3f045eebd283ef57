"""Dropout in the head at inference time: masks, sampling methods, the sequential test.

It knows no graph, no bundle's files and no image.
"""
