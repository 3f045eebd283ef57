"""What a classifier is: network, exported bundle, predictor, masks, uncertainty.

Knows no HTTP and no training loop. torch is imported only in `activations`, `network` and `export`.
"""
