"""Measures a bundle on a data split: metrics, selective prediction, OOD detection, corruptions.

Knows no training loop and no plot: it measures the exported graphs through `model.inference`.
"""
