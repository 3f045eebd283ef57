"""Short requests that arrive whole, answered where their last byte is read, without ASGI.

`--no-fast-path` takes this room out: every request then takes the ASGI path, to the same endpoints
and the same bytes. It knows no model and no route's meaning.
"""
