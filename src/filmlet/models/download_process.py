"""The process that fetches: told on stdin what, it says on stdout how far it is, a JSON a line.

A process of its own, for it can be killed at any moment; when whoever started it is gone, it ends.
"""

import errno
import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from httpx2 import HTTPError
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from tqdm import tqdm

from filmlet.core.model_card import ComponentSource
from filmlet.errors import (
    CheckpointCorrupt,
    CheckpointNotFound,
    DiskFull,
    FilmletError,
    HubAccessDenied,
    HubUnreachable,
)
from filmlet.models import hub_cache
from filmlet.models.checkpoint_files import is_complete

T = TypeVar("T")
WANTED = {".safetensors", ".json", ".model", ".txt"}  # no pickle, no pictures
BLOCK = 2**22


class FileNotOnHub(Exception):
    """The Hub was asked for a file and knows none of this name."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository. size: bytes; here: whether the cache has it."""

    source: ComponentSource
    path: str
    size: int
    here: bool


def main() -> int:
    """Fetch what the first line of stdin says, in JSON."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        download_files([ComponentSource(**source) for source in order["sources"]], order["most"])
    except FilmletError as error:
        _print_json(error=error.code, message=str(error))
    except Exception as error:  # the outermost line: the parent is to hear of it, whatever it was
        _print_json(error=HubUnreachable.code, message=f"{type(error).__name__}: {error}")
    return 0


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _print_json(**message: object) -> None:
    print(json.dumps(message), flush=True)  # noqa: T201 - the parent reads it


def download_files(sources: list[ComponentSource], max_bytes: int) -> None:
    """Fetch these, at most so many bytes, and say how far it is. Raises FilmletError."""
    files = [file for source in sources for file in _translate_errors(source, _list_files, source)]
    missing = sorted((file for file in files if not file.here), key=lambda file: file.size)
    total = sum(file.size for file in missing)
    if total > max_bytes:
        raise HubAccessDenied(
            f"{sources[0].repo} has {total / 1e9:.1f} GB, more than the {max_bytes / 1e9:.0f} GB "
            "that are fetched of it; name one file."
        )
    hub_cache.check_free_disk(total)
    done = 0
    for file in missing:
        _translate_errors(file.source, _download_file, file, done, total)
        done += file.size


def _translate_errors(source: ComponentSource, do: Callable[..., T], *args: object) -> T:
    try:
        return do(*args)
    except (FilmletError, OSError, EntryNotFoundError, HTTPError, FileNotOnHub) as error:
        raise _to_filmlet_error(source, error) from error


def _list_files(source: ComponentSource) -> list[RemoteFile]:
    """Return the files of a source. Raises what the Hub's client raises."""
    api = HfApi()
    if Path(source.path).suffix:
        entries = api.get_paths_info(source.repo, [source.path], revision=source.revision)
        if not entries:
            raise FileNotOnHub
    else:
        entries = list(
            api.list_repo_tree(source.repo, source.path or None, revision=source.revision)
        )
    snapshot = hub_cache.snapshot(source.repo, source.revision)
    return [
        RemoteFile(source, e.path, e.size, bool(snapshot and (snapshot / e.path).exists()))
        for e in entries
        if isinstance(e, RepoFile) and Path(e.path).suffix in WANTED
    ]


def list_files(source: ComponentSource) -> list[str]:
    """The names of the files of a source that are fetched. Raises what `download_files` raises."""
    if Path(source.path).suffix:
        return [source.path]
    path = hub_cache.local_path(source)
    if path and is_complete(path):
        return [f"{source.path}/{file.name}" for file in hub_cache.files(path)]
    return [file.path for file in _translate_errors(source, _list_files, source)]


def _download_file(file: RemoteFile, done: int, total: int) -> None:
    def tell(now: float) -> None:
        read = min(int(now), file.size)
        _print_json(file=file.path, done=read, size=file.size, all_done=done + read, all_size=total)

    class HubProgressBar(tqdm):
        """Counts what the client reads, and shows nothing."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": False, "file": nowhere})

        def update(self, n: float | None = 1) -> Any:
            moved = super().update(n)
            tell(self.n)
            return moved

        def update_transfer(self, n: float) -> None:
            """Bytes on the wire, of which some become more: not counted."""

    tell(0)
    with Path(os.devnull).open("w") as nowhere:
        source = file.source
        path = hf_hub_download(
            source.repo, file.path, revision=source.revision, tqdm_class=HubProgressBar
        )
    _verify_hash(Path(path), file.path)
    tell(file.size)


def _verify_hash(path: Path, name: str) -> None:
    """The cache names what it holds by the hash that the Hub told; is it that?"""
    blob = path.resolve()
    expected = blob.name
    if len(expected) == 64:
        actual = _hash(blob, hashlib.sha256())
    elif len(expected) == 40:  # git's own, of small files
        head = f"blob {blob.stat().st_size}\0".encode()
        actual = _hash(blob, hashlib.sha1(head, usedforsecurity=False))
    else:
        return
    if actual != expected:
        hub_cache.delete_file(path)
        raise CheckpointCorrupt(
            f"{name} did not come as the Hub has it (its hash is {actual[:12]} and should be "
            f"{expected[:12]}); it was deleted. Try again."
        )


def _hash(path: Path, hasher: "hashlib._Hash") -> str:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def _to_filmlet_error(source: ComponentSource, error: Exception) -> FilmletError:
    """Return an error of the Hub's client as one that says what to do."""
    match error:
        case FilmletError():
            return error
        case GatedRepoError():
            return HubAccessDenied(
                f"{source.repo} is gated: accept its licence at {constants.ENDPOINT}/{source.repo}"
                ", then set HF_TOKEN to a token of that account."
            )
        case RepositoryNotFoundError():
            return HubAccessDenied(
                f"The Hub has no {source.repo}, or not for all: set HF_TOKEN if it is private."
            )
        case OfflineModeIsEnabled():
            return HubUnreachable(
                f"{source.repo} is not all on this machine, and HF_HUB_OFFLINE forbids to fetch it."
            )
        case RevisionNotFoundError() | RemoteEntryNotFoundError() | FileNotOnHub():
            return CheckpointNotFound(
                f"{source.repo} has no {source.path or 'such revision'} at {source.revision}."
            )
        case HfHubHTTPError() if error.response.status_code in (401, 403):
            return HubAccessDenied(
                f"The Hub refuses {source.repo}: set HF_TOKEN to one that may read."
            )
        case OSError(errno=errno.ENOSPC):
            return DiskFull(f"The disk of {hub_cache.cache()} is full; make room and try again.")
    cause = str(error).strip().partition("\n")[0] or type(error).__name__
    return HubUnreachable(
        f"The Hub at {constants.ENDPOINT} cannot be reached ({cause}). Files that came whole are "
        "kept; try again."
    )


if __name__ == "__main__":
    sys.exit(main())
