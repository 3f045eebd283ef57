"""HTTP in, HTTP out; no numerics."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response


def json_response(content: Mapping[str, Any]) -> Response:
    """Serialise once, floats in full."""
    return Response(orjson.dumps(content), media_type="application/json")
