"""Throughput and latency of Dropserve and other model servers, side by side in one run."""
