"""A replica as Serve uses it, without Ray: application, lifespan, health checks."""

import asyncio
from pathlib import Path

import pytest

from service.errors import NotReadyError
from service.ray_serve.replica import Dropserve


def check_health(replica: Dropserve) -> None:
    """Run the lifespan as Serve does, and the first two health checks."""

    async def run() -> None:
        app = replica.__serve_build_asgi_app__()
        async with app.router.lifespan_context(app):
            await replica.check_health()
            await replica.check_health()

    asyncio.run(run())


def test_replica_is_healthy_once_it_is_ready(models_folder: Path) -> None:
    check_health(Dropserve({"models_folder": str(models_folder)}))


def test_replica_that_cannot_get_ready_says_why(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="The models folder holds no bundle; train one"):
        check_health(Dropserve({"models_folder": str(tmp_path)}))


def test_replica_that_loses_its_models_later_is_not_given_up(
    models_folder: Path,
) -> None:
    async def run() -> None:
        replica = Dropserve({"models_folder": str(models_folder)})
        app = replica.__serve_build_asgi_app__()
        async with app.router.lifespan_context(app):
            await replica.check_health()
            await replica.repository.unload("digits")
            assert replica.repository.not_ready_reason() is not None
            await replica.check_health()

    asyncio.run(run())
