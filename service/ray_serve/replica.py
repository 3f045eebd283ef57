"""One replica of the service in Ray Serve: the application, and when it may get requests."""

from collections.abc import Mapping
from typing import Any

from service.app import Application, create_app
from service.errors import NotReadyError
from service.observability import log_format
from service.observability.metrics_recorder import Metrics
from service.ray_serve.replica_settings import load_settings
from service.registry.model_repository import Repository


class Dropserve:
    """What Serve makes one of in each replica; Serve runs the application's lifespan."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """Read the settings again, in the environment of this replica; raises SettingsError."""
        self._settings = load_settings(arguments)
        log_format.configure(self._settings.log_level, self._settings.log_format)
        self.repository = Repository(self._settings, Metrics())
        self._was_ready = False

    def __serve_build_asgi_app__(self) -> Application:
        """Build the application, as Serve asks for it after `__init__`."""
        return create_app(self._settings, self.repository)

    async def check_health(self) -> None:
        """Wait until the replica is ready for the first time; later it lives while it answers.

        A new replica that cannot get ready is given up, and Serve's status says why. One that has
        lost its models later is not: another would find the same models and rollouts.

        Raises:
            NotReadyError: it says in one sentence why the replica cannot serve.
        """
        if self._was_ready:
            return
        await self.repository.wait_until_loaded(self._settings.load_timeout_seconds)
        reason = self.repository.not_ready_reason()
        if reason is not None:
            raise NotReadyError(reason)
        self._was_ready = True
