"""Trains a classifier on a data set and exports it as a bundle: `python -m training --help`.

Needs torch. Knows no HTTP.
"""
