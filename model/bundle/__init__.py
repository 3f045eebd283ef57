"""The exported artefact on disk: manifest, files and self-test. It runs no inference."""
