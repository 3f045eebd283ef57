"""Ours and other model servers, side by side in one run."""
