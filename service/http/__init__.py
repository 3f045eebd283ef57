"""HTTP over sockets: listeners, limits for each client, request bodies, middleware and errors.

Knows no route and no model.
"""
