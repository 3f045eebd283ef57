"""The service's settings as the `args` of a Serve application name them. Knows no Ray."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError as ParseError

from model.cli_and_env_settings import describe_validation_error
from model.errors import SettingsError
from service.settings import ServiceSettings

_REPLICAS = "give num_replicas or autoscaling_config to the deployment"
_PROXY_OPTIONS = "give http_options to Serve"
_BEFORE_THE_PROXY = "Serve's proxy counts no client; limit them in a proxy before it"
_CONTROL = "replicas open no control listener; give control: anyone, or rollouts: FILE"
_DRAINING = "give graceful_shutdown_timeout_s to the deployment"

_DONE_BY_SERVE: Mapping[str, str] = {
    "host": _PROXY_OPTIONS,
    "port": _PROXY_OPTIONS,
    "tls_certificate": _PROXY_OPTIONS,
    "tls_key": _PROXY_OPTIONS,
    "tls_client_ca": _PROXY_OPTIONS,
    "keep_alive_seconds": _PROXY_OPTIONS,
    "workers": _REPLICAS,
    "drain_delay": _DRAINING,
    "grace_seconds": _DRAINING,
    "control_socket": _CONTROL,
    "control_port": _CONTROL,
    "client_requests_per_second": _BEFORE_THE_PROXY,
    "client_images_per_second": _BEFORE_THE_PROXY,
    "client_burst_seconds": _BEFORE_THE_PROXY,
    "max_connections": _BEFORE_THE_PROXY,
    "max_buffered_bytes": _BEFORE_THE_PROXY,
    "head_timeout_seconds": _BEFORE_THE_PROXY,
    "write_timeout_seconds": _BEFORE_THE_PROXY,
    "fast_path": "requests reach replicas through Serve's proxy, as ASGI; leave it out",
}
"""Settings of `python -m service` that a replica cannot follow, each with what to do instead."""
_OF_THE_IMAGE = frozenset(("host", "port"))
"""Settings that the container image gives by environment variables, whatever runs in it."""
_FOLDERS_AND_FILES = (
    *("models_folder", "models_cache", "control_folder", "rollouts"),
    *("api_keys_file", "traffic_log"),
)


def load_settings(arguments: Mapping[str, Any]) -> ServiceSettings:
    """Return the settings of a replica: `arguments`, environment, file, defaults in this order.

    arguments: names as in a TOML file, with underscores.

    Raises:
        SettingsError: names the first wrong setting and says what to do.
    """
    try:
        settings = ServiceSettings(**arguments)
    except ParseError as error:
        raise SettingsError(str(error)) from None
    except ValidationError as error:
        raise SettingsError(describe_validation_error(error)) from None
    named = {*arguments, *(settings.model_fields_set - _OF_THE_IMAGE)}
    for name, advice in _DONE_BY_SERVE.items():
        if name in named:
            raise SettingsError(f"{name}: a replica of Ray Serve cannot follow it; {advice}.")
    for name in _FOLDERS_AND_FILES:
        path = getattr(settings, name)
        if path is not None and not path.is_absolute():
            raise SettingsError(
                f"{name}: {str(path)!r} is relative, and Ray starts replicas in folders of its "
                "own; write the whole path."
            )
    return settings
