"""True labels of earlier answers, in an SQLite file, and what they say of each version.

Knows no route.
"""
