"""The images, built once, and the containers of the compose file."""

from collections.abc import Iterator

import pytest

from tests.containers.compose_stack import BUILD_SECONDS, Stack


@pytest.fixture(scope="session")
def project() -> Iterator[Stack]:
    """The compose project, of which nothing is built yet; it is removed at the end."""
    stack = Stack()
    try:
        yield stack
    finally:
        stack.compose("down", "--volumes", "--rmi", "local")


@pytest.fixture(scope="session")
def service_image(project: Stack) -> tuple[str, str]:
    """The container engine, and the name of the service's image."""
    project.compose("build", "service", seconds=BUILD_SECONDS)
    return project.image("service")


@pytest.fixture(scope="session")
def stack(project: Stack) -> Stack:
    """The project while the service runs and is ready."""
    project.compose("build", seconds=BUILD_SECONDS)
    project.compose("up", "-d", seconds=BUILD_SECONDS)
    project.wait_until_ready()
    return project
