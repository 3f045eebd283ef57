"""Who sends a request, to which host, from which origin. Knows no route and no HTTP library."""
