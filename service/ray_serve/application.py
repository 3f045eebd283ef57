"""The Serve application that a config file names: `service.ray_serve.application:build`.

    serve run service.ray_serve.application:build models_folder=/srv/models

Ray is imported here alone.
"""

from collections.abc import Mapping
from typing import Any

from ray import serve

from service.ray_serve.replica import Dropserve
from service.ray_serve.replica_settings import load_settings

_REQUESTS_OF_A_REPLICA = 64
_WAITING_REQUESTS = 1024


def build(arguments: Mapping[str, Any]) -> serve.Application:
    """Return the application, for Serve's config file and `serve run`.

    arguments: settings of the service; see `replica_settings`.

    Raises:
        SettingsError: they are wrong.
    """
    load_settings(arguments)
    deployment = serve.deployment(
        serve.ingress()(Dropserve),
        name="dropserve",
        max_ongoing_requests=_REQUESTS_OF_A_REPLICA,
        max_queued_requests=_WAITING_REQUESTS,
        backpressure_config={"status_code": 503, "retry_after_s": 1},
    )
    return deployment.bind(dict(arguments))
