"""Serves exported bundles over HTTP: `python -m service --help`. Imports no torch or training."""

API_VERSION = "0.1.0"
