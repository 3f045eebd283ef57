"""Trains in several processes, on one machine or several.

Knows no training loop, no export and no report.
"""
