"""What TLS costs the service in processor time: `python -m benchmarks.tls_cost`.

One service answers the same request in turns by its public listener, which takes TLS, and by its
control listener, which takes plain HTTP: on a connection that is kept, and on a new one for each
request. What is compared is the processor time of the process for each request, which other
programs disturb less than they disturb its duration. Takes one to four minutes.
"""

import http.client
import ssl
import sys
import tempfile
from pathlib import Path

import trustme

from benchmarks.machine import describe_machine, end_like_ctrl_c
from benchmarks.processor_time import (
    compare_in_turns,
    picture,
    processor_seconds,
    running_service,
)

_TURNS = 40
_KEPT_REQUESTS, _NEW_REQUESTS = 200, 20


def _connect(port: int, context: ssl.SSLContext | None) -> http.client.HTTPConnection:
    if context is None:
        return http.client.HTTPConnection("127.0.0.1", port)
    return http.client.HTTPSConnection("127.0.0.1", port, context=context)


def _cost(pid: int, port: int, context: ssl.SSLContext | None, *, is_kept: bool) -> float:
    """Return the service's processor time for a request, seconds."""
    count = _KEPT_REQUESTS if is_kept else _NEW_REQUESTS
    connection = _connect(port, context)
    if is_kept:
        connection.connect()  # the handshake is not measured
        _request(connection)
    before = processor_seconds(pid)
    for _ in range(count):
        if not is_kept:
            connection.close()
        _request(connection)
    seconds = processor_seconds(pid) - before
    connection.close()
    return seconds / count


def _request(connection: http.client.HTTPConnection) -> None:
    connection.request("POST", "/predict", picture(), {"Content-Type": "image/png"})
    response = connection.getresponse()
    response.read()
    assert response.status == 200, response.status


def _compare(pid: int, ports: tuple[int, int], context: ssl.SSLContext, *, is_kept: bool) -> str:
    """Measure in turns, and return a line about it."""
    cost = compare_in_turns(
        lambda: _cost(pid, ports[0], None, is_kept=is_kept),
        lambda: _cost(pid, ports[1], context, is_kept=is_kept),
        _TURNS,
    )
    return (
        f"{'kept connection' if is_kept else 'new connection each'}: {cost.first * 1e6:.1f} us by "
        f"http, {cost.second * 1e6:.1f} us by https; median ratio of {_TURNS} turns "
        f"{cost.ratio:.3f}\n"
    )


def main(models_folder: Path = Path("models")) -> None:
    """Print what a request costs by http and by https, for both usual kinds of key."""
    end_like_ctrl_c()
    lines = []
    authority = trustme.CA()
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    for kind in trustme.KeyType:
        leaf = authority.issue_cert("127.0.0.1", key_type=kind)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            leaf.cert_chain_pems[0].write_to_path(str(folder / "server.pem"))
            leaf.private_key_pem.write_to_path(str(folder / "server.key"))
            certificate = ("--tls-certificate", str(folder / "server.pem"))
            options = (*certificate, "--tls-key", str(folder / "server.key"), "--control-port", "0")
            with running_service(models_folder, *options) as service:
                assert service.control_address is not None
                ports = (service.control_address[1], service.address[1])
                for is_kept in (True, False):
                    line = _compare(service.pid, ports, context, is_kept=is_kept)
                    lines.append(f"{kind.name} {line}")
    sys.stdout.write(f"{describe_machine()}\n{''.join(lines)}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
