"""Features of the service that every request pays for: their options and headers. Sends nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from service.keys.key_file_changes import add_key

_KEYS = 100


@dataclass(frozen=True)
class Feature:
    """What a service is started with, and what its requests have besides."""

    options: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


NOTHING = Feature()
_RATES = ("--client-requests-per-second", "1e6", "--client-images-per-second", "1e6")
_PROXIES = ("--trusted-proxies", "127.0.0.0/8")


def features(folder: Path) -> dict[str, Feature]:
    """Return every feature by name.

    folder: takes the files that they need, among them a key file with 100 keys.
    """
    file = folder / "keys.json"
    keys = [add_key(file, f"user-{i}", frozenset({"predict"}), None) for i in range(_KEYS)]
    origin = {"Origin": "https://example.org"}
    return {
        "keys": Feature(("--api-keys-file", str(file)), {"Authorization": f"Bearer {keys[-1]}"}),
        "log": Feature(("--traffic-log", str(folder / "log"))),
        "feedback": Feature(("--feedback", str(folder / "feedback.db"))),
        "nothing": NOTHING,
        "cors": Feature(("--cors-origins", "https://example.org"), origin),
        "proxies": Feature(_PROXIES, {"X-Forwarded-For": "198.51.100.7"}),
        "hosts": Feature(("--allowed-hosts", "127.0.0.1,*.example.org")),
        "rates": Feature(_RATES),
    }
