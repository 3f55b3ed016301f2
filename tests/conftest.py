"""Checkpoints that many tests share, made once."""

from pathlib import Path

import pytest
import torch

from filmlet.clip import Clip
from tests.queues import postgres, queue, settings, start
from tests.servers import client, home, serve, shared_server
from tests.tiny import make_checkpoint

__all__ = ["client", "home", "postgres", "queue", "serve", "settings", "shared_server", "start"]

PROMPT = "a red ball moving left on white"


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint with a plain decoder."""
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="session")
def tiny_timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint whose decoder takes a timestep."""
    return make_checkpoint(tmp_path_factory.mktemp("timed") / "timed", timed=True)


@pytest.fixture(scope="session")
def tiny_noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint that draws noise anew before each call."""
    return make_checkpoint(tmp_path_factory.mktemp("noisy") / "noisy", stochastic=True)


@pytest.fixture(scope="session")
def tiny_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint with a second stage."""
    return make_checkpoint(tmp_path_factory.mktemp("two") / "two", timed=True, two_stages=True)


@pytest.fixture(scope="session")
def pocket_clip() -> Clip:
    """The default clip of the bundled model."""
    import filmlet

    return filmlet.generate("a red circle moving left on a white background", seed=1)
