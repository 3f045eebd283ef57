"""Chooses, from a pool of images without labels, those that are most worth labelling.

Knows bundles and images, not the training loop: what is chosen is labelled by a person first.
"""
