"""Lists the pages for people, as the service routes them."""

from fastapi.routing import APIRoute

from service.web.pages import router


def page_paths() -> list[str]:
    """Return the path of each page, the page Try first; the API reference is not among them."""
    routes = (route for route in router().routes if isinstance(route, APIRoute))
    return [route.path for route in routes if "{" not in route.path]
