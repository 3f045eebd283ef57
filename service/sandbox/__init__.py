"""Sandbox processes: bodies that may need much time or memory are decoded in killable processes.

Knows nothing of models beyond their input size, and nothing of routes.
"""
