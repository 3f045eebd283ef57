"""Reproduces claims of the literature on ReLU and dropout: `python -m training.experiments NAME`.

Each module with a function `run` is one experiment. Exports no bundle.
"""
