"""Inference: the queue and the batcher in front of one predictor, and the loader of bundles.

The room knows no route, no rollout and no other model than the one it runs.
"""
