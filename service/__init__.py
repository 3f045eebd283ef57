"""HTTP over bundles: `python -m service --help`. Knows no torch and no training."""

API_VERSION = "0.1.0"
