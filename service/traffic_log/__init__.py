"""What was asked and answered, as JSON lines in a folder (`--traffic-log`). Knows no route."""
