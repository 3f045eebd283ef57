"""Metrics in Prometheus' format, statistics of models and log lines. Knows no route."""
