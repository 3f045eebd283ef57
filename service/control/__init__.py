"""The command that changes which versions a running service serves. Knows no bundle."""
