"""What is derived from logits and features: uncertainty, calibration and typicality.

It draws no mask and knows no bundle.
"""
