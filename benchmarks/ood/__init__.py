"""Measures how well bundles detect out-of-distribution (OOD) images, and at what cost."""
