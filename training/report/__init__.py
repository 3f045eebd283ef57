"""Presents what was measured: the plots, the model card and the HTML page. Measures nothing."""
