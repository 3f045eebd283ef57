"""Defines the torch networks: activation functions, the presets' classifiers, and pruning.

Knows no data set, no training loop and no export format.
"""
