"""Scoring of many images without a server: `python -m service.score`.

Knows files, archives and tables; knows no HTTP. The figures are those of POST /uncertainty.
"""
