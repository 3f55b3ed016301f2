"""Storages that several machines share: a folder, and S3 on loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """An S3 server on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def folder_url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/shared"


@pytest.fixture
def s3_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: str) -> str:
    """A place of its own in a bucket."""
    import s3fs

    for name, value in [
        ("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_ENDPOINT_URL", s3), ("AWS_DEFAULT_REGION", "us-east-1"),
    ]:  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem().makedirs("clips", exist_ok=True)
    return f"s3://clips/{tmp_path.name}"


@pytest.fixture(params=["folder", "s3"])
def remote(request: pytest.FixtureRequest) -> str:
    """The URL of a storage that several machines share."""
    return str(request.getfixturevalue(f"{request.param}_url"))
