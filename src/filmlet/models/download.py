"""Bring what a model needs into the Hub's cache, and say how far it is."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from queue import Empty, SimpleQueue

from filmlet.core.checkpoint_headers import read_json
from filmlet.core.lora import Lora
from filmlet.core.model_card import ComponentSource, ModelCard
from filmlet.errors import (
    CheckpointCorrupt,
    CheckpointNotFound,
    DiskFull,
    FilmletError,
    HubAccessDenied,
    HubUnreachable,
)
from filmlet.models import hub_cache
from filmlet.models.checkpoint_files import local_files

CHILD = (sys.executable, "-m", "filmlet.models.download_process")
KINDS: tuple[type[FilmletError], ...] = (
    CheckpointCorrupt, CheckpointNotFound, DiskFull, HubAccessDenied, HubUnreachable,
)  # fmt: skip
POLL_S = 0.2
LARGEST_LORA = 10**10  # bytes; a client may name any repository
INDEX = "model_index.json"
NEEDED = (INDEX, "scheduler", "tokenizer", "vae", "transformer", "text_encoder")
NEEDED_BY_LTX2 = ("connectors", "audio_vae", "vocoder")
UPSAMPLER = "latent_upsampler"  # that a repository may have


@dataclass(frozen=True)
class DownloadProgress:
    """Bytes so far: of one file, and of all that are to be fetched."""

    file: str
    done: int
    size: int
    all_done: int
    all_size: int


def download_model(card: ModelCard) -> Iterator[DownloadProgress]:
    """Fetch what of a card is not here; close the iterator to stop.

    Raises HubUnreachable, HubAccessDenied, CheckpointNotFound, CheckpointCorrupt, DiskFull.
    """
    if local_files(card):
        return
    present = (source for _, source in card.sources.present())
    sources = dict.fromkeys(source for source in present if source.repo)  # others are files here
    yield from fetch_sources(list(sources))


def download_repository(name: str) -> Iterator[DownloadProgress]:
    """Fetch a repository in diffusers' layout, those parts of it that are used. As
    `download_model`.
    """

    def part(path: str) -> ComponentSource:
        return ComponentSource(path, repo=name, revision="main")

    yield from fetch_sources([part(INDEX)])
    snapshot = hub_cache.snapshot(name, "main")
    assert snapshot
    is_ltx2 = str(read_json(snapshot / INDEX).get("_class_name")).startswith("LTX2")
    yield from fetch_sources([part(path) for path in NEEDED + NEEDED_BY_LTX2 * is_ltx2])
    if is_ltx2:
        with suppress(CheckpointNotFound):
            yield from fetch_sources([part(UPSAMPLER)])


def fetch_lora(lora: Lora) -> Iterator[DownloadProgress]:
    """Fetch a LoRA of the Hub: its file, or what lies at the top of its repository. As
    `download_model`.
    """
    owner, name, *inside = lora.source.split("/")
    source = ComponentSource("/".join(inside), repo=f"{owner}/{name}", revision="main")
    yield from fetch_sources([source], max_bytes=LARGEST_LORA)


def fetch_sources(
    sources: Sequence[ComponentSource], max_bytes: int = sys.maxsize
) -> Iterator[DownloadProgress]:
    """Fetch what of these is not here, at most so many bytes. As `download_model`."""
    for repo in {source.repo for source in sources}:
        hub_cache.delete_partial_downloads(repo)
    with _download_process(sources, max_bytes) as child:
        so_far = DownloadProgress("", 0, 0, 0, 0)
        for line in _lines_or_timeout(child):
            if line:
                message = json.loads(line)
                if "error" in message:
                    raise _error_from_code(message["error"], message["message"])
                so_far = DownloadProgress(**message)
            yield so_far
        if child.wait():
            raise HubUnreachable("The download process ended unexpectedly; try again.")


def _lines_or_timeout(child: "subprocess.Popen[str]") -> Iterator[str]:
    """The lines that a process writes; "" while it is silent, so that whoever waits can stop."""
    lines: SimpleQueue[str | None] = SimpleQueue()

    def read_lines() -> None:
        assert child.stdout
        for line in child.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read_lines, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=POLL_S)
        except Empty:
            yield ""
            continue
        if line is None:
            return
        yield line


@contextmanager
def _download_process(
    sources: Sequence[ComponentSource], max_bytes: int
) -> Iterator["subprocess.Popen[str]"]:
    """The process that fetches; it ends with the block, in the middle of a file if need be."""
    pipe = subprocess.PIPE
    quiet = subprocess.DEVNULL
    with subprocess.Popen(CHILD, stdin=pipe, stdout=pipe, stderr=quiet, text=True) as child:
        try:
            assert child.stdin
            order = {"sources": [asdict(source) for source in sources], "most": max_bytes}
            child.stdin.write(json.dumps(order) + "\n")
            child.stdin.flush()
            yield child
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
                for repo in {source.repo for source in sources}:
                    hub_cache.delete_partial_downloads(repo)


def _error_from_code(code: str, message: str) -> FilmletError:
    return next(kind for kind in KINDS if kind.code == code)(message)
