"""From a data set to a bundle: `python -m training --help`. Knows no HTTP."""
