"""Divides the rows of a batch into the runs of a graph."""


def row_slices(count: int, most: int) -> list[slice]:
    """Return slices of at most `most` rows, which together are all of `count` rows, in order."""
    return [slice(start, start + most) for start in range(0, count, most)]
