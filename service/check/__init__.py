"""What `python -m service` would do with the same settings, examined without serving."""
