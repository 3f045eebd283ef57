"""HTTP in, HTTP out; no numerics."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.errors import InvalidQueryError


def json_response(content: Mapping[str, Any]) -> Response:
    """Serialise once, floats in full."""
    return Response(orjson.dumps(content), media_type="application/json")


async def refuse_repeated_parameters(request: Request) -> None:
    """Refuse a query parameter that is given twice, rather than pick one of its values."""
    seen = set()
    for name, _ in request.query_params.multi_items():
        if name in seen:
            raise InvalidQueryError(f"Query parameter {name!r} is given twice; give it once.")
        seen.add(name)
