"""Transfer learning: a head trained on the features of a pretrained network that stays as it is.

Knows no bundle and no report.
"""
