"""The HTML pages for browsers, with their Content-Security-Policy. Knows no model."""
