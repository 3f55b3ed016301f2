"""The Hub's cache on this machine, shared with every other tool: what is there, what it takes."""

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants

from filmlet.core.checkpoint_headers import read_bounded
from filmlet.core.model_card import ComponentSource
from filmlet.errors import DiskFull

COMMIT = re.compile(r"[0-9a-f]{40}")
REF_BYTES = 64
MIN_FREE_BYTES = 200_000_000  # bytes of disk that stay free
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_name(text: str) -> bool:
    """Return whether it could name a repository: OWNER/NAME."""
    return bool(NAME.fullmatch(text))


def cache() -> Path:
    """Return the folder of the cache, where HF_HOME or HF_HUB_CACHE say."""
    return Path(constants.HF_HUB_CACHE)


def snapshot(repo: str, revision: str) -> Path | None:
    """Return the folder of a repository at a commit, or at a branch as it was last asked."""
    folder = _repository(repo)
    ref = folder / "refs" / revision
    commit = read_bounded(ref, REF_BYTES).decode("ascii", "replace") if ref.is_file() else revision
    if not COMMIT.fullmatch(commit):
        return None
    path = folder / "snapshots" / commit
    return path if path.is_dir() else None


def local_path(source: ComponentSource) -> Path | None:
    """Return the path of a component, there or not; None if its repository is not here."""
    root = source.root or snapshot(source.repo, source.revision)
    return root / source.path if root else None


def nearest_existing_folder(folder: Path) -> Path:
    """Return the folder, or the one in which it would be made."""
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def check_free_disk(download_bytes: int) -> None:
    """Check that the cache's disk has room for a download. Raises DiskFull."""
    free = shutil.disk_usage(nearest_existing_folder(cache())).free
    if download_bytes + MIN_FREE_BYTES > free:
        raise DiskFull(
            f"{download_bytes / 1e9:.1f} GB are to be fetched, and the disk of {cache()} has "
            f"{free / 1e9:.1f} GB left; make room, or set HF_HOME to a folder on a larger one."
        )


def files(path: Path) -> list[Path]:
    """Return every file of a component."""
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def delete_file(file: Path) -> int:
    """Take one file out of the cache; bytes that this freed. Others may still use what it was."""
    blob = file.resolve()
    file.unlink()
    with suppress(OSError):
        file.parent.rmdir()
    if blob == file or not blob.is_file():
        return 0
    others = blob.parent.parent.glob("snapshots/**/*")
    if any(other.is_symlink() and other.resolve() == blob for other in others):
        return 0
    freed = blob.stat().st_size
    blob.unlink()
    return freed


def delete_partial_downloads(repo: str | None = None) -> int:
    """Delete partial files that no download is writing, of one repository or of all; bytes freed.

    A download that was killed leaves one behind, and nobody can go on from it.
    """
    from filelock import FileLock  # slow, and only downloads need it

    freed = 0
    for part in _iter_partial_downloads(_repository(repo) if repo else None):
        lock = cache() / ".locks" / part.parent.parent.name / f"{part.name.partition('.')[0]}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        # The lock of huggingface_hub; without flock in the file system, files are left alone.
        with suppress(OSError, NotImplementedError), FileLock(lock, timeout=0.01, mode=0o664):
            freed += part.stat().st_size
            part.unlink()
    return freed


def _iter_partial_downloads(folder: Path | None) -> Iterator[Path]:
    where = f"{folder.name}/blobs/*.incomplete" if folder else "models--*/blobs/*.incomplete"
    yield from cache().glob(where)


def _repository(repo: str) -> Path:
    from huggingface_hub.file_download import repo_folder_name  # slow, as above

    return cache() / repo_folder_name(repo_id=repo, repo_type="model")
