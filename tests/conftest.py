"""Marks, and checkpoints that many tests share; torch is imported only where they are made."""

import os
import tempfile
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers import marks
from tests.helpers.queues import postgres, queue, settings, start
from tests.helpers.servers import client, home, serve, shared_server
from tests.helpers.storages import folder_url, remote, s3, s3_url

if TYPE_CHECKING:
    from filmlet.clip import Clip
    from tests.helpers.forked_decoders import DecoderServer

__all__ = [
    "client",
    "folder_url",
    "home",
    "postgres",
    "queue",
    "remote",
    "s3",
    "s3_url",
    "serve",
    "settings",
    "shared_server",
    "start",
]

PROMPT = "a red ball moving left on white"


def pytest_configure() -> None:
    """Before torch is there, and for every process that a test starts."""
    # Threads of two processes that share two cores wait for each other, and sums depend on them.
    os.environ["OMP_NUM_THREADS"] = "1"
    # No test may reach the Hub, or depend on what somebody has fetched from it.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["FILMLET_CACHE"] = str(Path(tempfile.gettempdir()) / "filmlet-tests-compiled")
    os.environ["HF_HOME"] = str(Path(tempfile.gettempdir()) / "filmlet-tests-no-hub")
    marks.install_guard()


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marks.add_fixture_marks(items)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    is_test = collection_path.suffix == ".py" and collection_path.name != "__init__.py"
    expression = config.getoption("markexpr")
    return True if is_test and marks.has_only_left_out(collection_path, expression) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    with marks.guard_processes(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    with marks.guard_processes(item), marks.guard_cpu_time(item):
        return (yield)


@pytest.fixture(scope="session")
def decoder_servers() -> Generator["dict[bool, DecoderServer]"]:
    from tests.helpers.forked_decoders import serve_decoders

    with serve_decoders() as servers:
        yield servers


@pytest.fixture
def forked_decoders(
    decoder_servers: "dict[bool, DecoderServer]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start the decoders of this process at once. `tests/media/test_sandbox.py` has none of it."""
    from filmlet.media import sandbox
    from tests.helpers.forked_decoders import start_decoder

    monkeypatch.setattr(sandbox, "_start", partial(start_decoder, decoder_servers))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint with a plain decoder."""
    from tests.helpers.tiny_checkpoint import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="session")
def tiny_timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint whose decoder takes a timestep."""
    from tests.helpers.tiny_checkpoint import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("timed") / "timed", timed=True)


@pytest.fixture(scope="session")
def tiny_noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint that draws noise anew before each call."""
    from tests.helpers.tiny_checkpoint import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("noisy") / "noisy", stochastic=True)


@pytest.fixture(scope="session")
def tiny_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint with a second stage."""
    from tests.helpers.tiny_checkpoint import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("two") / "two", timed=True, two_stages=True)


@pytest.fixture(scope="session")
def tiny_guided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint for LTXConditionPipeline: guides anywhere."""
    from tests.helpers.tiny_checkpoint import edit_json, make_checkpoint

    folder = make_checkpoint(tmp_path_factory.mktemp("guided") / "guided", timed=True)
    edit_json(folder / "model_index.json", _class_name="LTXConditionPipeline")
    return folder


@pytest.fixture(scope="session")
def ltx2_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random checkpoints of LTX-2.0, 2.3 and 2.5 in diffusers' layout, by version."""
    from tests.helpers.tiny_ltx2 import VERSIONS, make_ltx2

    root = tmp_path_factory.mktemp("ltx2")
    return {version: make_ltx2(root / version, version) for version in VERSIONS}


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny twin of Lightricks' repository."""
    from tests.helpers.tiny_ltx_files import make_twin

    return make_twin(tmp_path_factory.mktemp("lightricks") / "LTX-Video")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where graphs are kept from one test to the next."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def pocket_clip() -> "Clip":
    """The default clip of the bundled model."""
    import filmlet

    return filmlet.generate("a red circle moving left on a white background", seed=1)
