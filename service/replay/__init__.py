"""The images of a traffic log through another version: `python -m service.replay`, no server."""
