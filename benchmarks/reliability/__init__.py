"""Programs that attack, break and overload the service, and say whether it stood."""
