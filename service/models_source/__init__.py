"""Bundles that are published elsewhere: found, fetched into a local cache, and verified there."""
