"""moto's S3 server in a process of its own, with a Python that has moto."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from obstore.store import S3Store

_PYTHON = os.environ.get("DROPSERVE_MOTO_PYTHON")  # read before a fixture removes it
BUCKET = "bundles"
_CODE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""


class S3Server:
    """An S3 server with a bucket, and the variables by which a client finds it."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.variables = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "access-key",
            "AWS_SECRET_ACCESS_KEY": "secret-key",
            "AWS_REGION": "us-east-1",
        }
        httpx.put(f"{self.endpoint}/{BUCKET}").raise_for_status()
        self._store = S3Store(
            BUCKET,
            endpoint=self.endpoint,
            access_key_id="access-key",
            secret_access_key="secret-key",
            region="us-east-1",
            client_options={"allow_http": True},
        )

    def put(self, bundle: Path, path: str) -> None:
        """Publish the files of a bundle, the manifest first, as a careless copy does."""
        files = sorted(file for file in bundle.rglob("*") if file.is_file())
        for file in sorted(files, key=lambda each: each.name != "manifest.json"):
            self._store.put(f"{path}/{file.relative_to(bundle)}", file.read_bytes())

    def remove(self, prefix: str) -> None:
        """Remove all files below a path."""
        for batch in self._store.list(prefix):
            self._store.delete([each["path"] for each in batch])


@contextmanager
def running_s3_server() -> Iterator[S3Server]:
    """Run the server; it ends with the block."""
    if _PYTHON is None:
        pytest.fail("DROPSERVE_MOTO_PYTHON names no Python that has moto; run make source-test.")
    with subprocess.Popen(
        [_PYTHON, "-c", _CODE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield S3Server(int(process.stdout.readline()))
        finally:
            process.kill()
