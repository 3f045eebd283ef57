"""API keys: who may do what. Knows no route and no HTTP library."""
