"""Which models and versions are in service, and the rollouts, defaults and failures behind that.

The room knows no route and no network.
"""
