"""Which requests belong to a share of all: a hash of the id decides, in every replica alike."""

import hashlib


def routes_to_canary(request_id: str, share: float) -> bool:
    """Return whether a request goes to the canary; always the same for the same id.

    share: the canary's share of all ids, 0..1; an id in a small share is also in every larger one.
    """
    return _is_in_share(request_id, share, b"")


def is_shadowed(request_id: str, share: float) -> bool:
    """Return whether the answer to a request is compared; as `routes_to_canary`, and independent.

    Otherwise the requests that a canary answers would be those that should be compared.
    """
    return share >= 1 or _is_in_share(request_id, share, b"shadow")


def _is_in_share(request_id: str, share: float, purpose: bytes) -> bool:
    digest = hashlib.blake2b(request_id.encode(), digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "big") < share * 2**64
