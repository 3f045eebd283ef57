"""Trains a classifier on a data set, and diagnoses how its hidden units and gradients behave.

Knows no bundle, no export and no report.
"""
