"""Side by side against peers and the bare limit, in one run; never part of the tests."""
