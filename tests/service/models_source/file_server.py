"""An HTTP server of a folder on the loopback, that can be stopped and that notes its requests."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class FileServer(ThreadingHTTPServer):
    """Serves a folder; `authorizations` has the header of every request."""

    def __init__(self, folder: Path) -> None:
        self.authorizations: list[str | None] = []
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        self.server.authorizations.append(self.headers.get("Authorization"))
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@contextmanager
def serving_files(folder: Path) -> Iterator[FileServer]:
    with FileServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
