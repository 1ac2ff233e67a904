"""A server of S3 on this machine, empty at the start and at the end.

What lies in the buckets is moto's own and not the server's, so that another server of this process would find it.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """The environment with which s3:// leads to it. Skips the test where moto or s3fs is missing."""
    pytest.importorskip("s3fs", reason="the extra [remote] is not installed")
    moto = pytest.importorskip("moto.server", reason="moto[server] of the extra [test] is not installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    try:
        _empty(address)
        yield {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        _empty(address)
        server.stop()


def _empty(address: str) -> None:
    urllib.request.urlopen(f"{address}/moto-api/reset", data=b"").close()
