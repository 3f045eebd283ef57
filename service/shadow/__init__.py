"""Shadow versions: their answers are compared with those of the stable version, out of the way."""
