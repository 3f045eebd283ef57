"""Loads a data set into memory, splits it, cuts it into batches and augments them.

Knows no network and no training loop.
"""
