"""The claims of the literature, reproduced: `python -m training.experiments NAME`."""
