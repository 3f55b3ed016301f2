"""Bring what a model needs into the Hub's cache, and say how far it is."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from queue import Empty, SimpleQueue

from filmlet.core.lora import Lora
from filmlet.core.model_card import ModelCard, Source
from filmlet.errors import (
    CheckpointDamaged,
    CheckpointMissing,
    DiskFull,
    FilmletError,
    HubRefused,
    HubUnreachable,
)
from filmlet.models import hub_cache
from filmlet.models.checkpoint_files import locate

CHILD = (sys.executable, "-m", "filmlet.models.download_process")
KINDS: tuple[type[FilmletError], ...] = (
    CheckpointDamaged, CheckpointMissing, DiskFull, HubRefused, HubUnreachable,
)  # fmt: skip
SILENCE_S = 0.2
LARGEST_LORA = 10**10  # bytes; a client may name any repository
NEEDED = ("model_index.json", "scheduler", "tokenizer", "vae", "transformer", "text_encoder")


@dataclass(frozen=True)
class Fetched:
    """Bytes so far: of one file, and of all that are to be fetched."""

    file: str
    done: int
    size: int
    all_done: int
    all_size: int


def fetch(card: ModelCard) -> Iterator[Fetched]:
    """Fetch what of a card is not here; close the iterator to stop.

    Raises HubUnreachable, HubRefused, CheckpointMissing, CheckpointDamaged, DiskFull.
    """
    if locate(card):
        return
    sources = dict.fromkeys(source for _, source in card.sources.there())
    yield from fetch_sources(list(sources))


def repository(name: str) -> Iterator[Fetched]:
    """Fetch a repository in diffusers' layout, those parts of it that are used. As `fetch`."""
    yield from fetch_sources([Source(path, repo=name, revision="main") for path in NEEDED])


def fetch_lora(lora: Lora) -> Iterator[Fetched]:
    """Fetch a LoRA of the Hub: its file, or what lies at the top of its repository. As `fetch`."""
    owner, name, *inside = lora.source.split("/")
    source = Source("/".join(inside), repo=f"{owner}/{name}", revision="main")
    yield from fetch_sources([source], most=LARGEST_LORA)


def fetch_sources(sources: Sequence[Source], most: int = sys.maxsize) -> Iterator[Fetched]:
    """Fetch what of these is not here, at most so many bytes. As `fetch`."""
    for repo in {source.repo for source in sources}:
        hub_cache.sweep(repo)
    with _child(sources, most) as child:
        so_far = Fetched("", 0, 0, 0, 0)
        for line in _heard(child):
            if line:
                told = json.loads(line)
                if "error" in told:
                    raise _error(told["error"], told["message"])
                so_far = Fetched(**told)
            yield so_far
        if child.wait():
            raise HubUnreachable("The download ended without a word; try again.")


def _heard(child: "subprocess.Popen[str]") -> Iterator[str]:
    """The lines that a process writes; "" while it is silent, so that whoever waits can stop."""
    lines: SimpleQueue[str | None] = SimpleQueue()

    def read() -> None:
        assert child.stdout
        for line in child.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=SILENCE_S)
        except Empty:
            yield ""
            continue
        if line is None:
            return
        yield line


@contextmanager
def _child(sources: Sequence[Source], most: int) -> Iterator["subprocess.Popen[str]"]:
    """The process that fetches; it ends with the block, in the middle of a file if need be."""
    pipe = subprocess.PIPE
    quiet = subprocess.DEVNULL
    with subprocess.Popen(CHILD, stdin=pipe, stdout=pipe, stderr=quiet, text=True) as child:
        try:
            assert child.stdin
            wanted = {"sources": [asdict(source) for source in sources], "most": most}
            child.stdin.write(json.dumps(wanted) + "\n")
            child.stdin.flush()
            yield child
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
                for repo in {source.repo for source in sources}:
                    hub_cache.sweep(repo)


def _error(code: str, message: str) -> FilmletError:
    return next(kind for kind in KINDS if kind.code == code)(message)
