"""Brings a Space at the Hub to what is wanted, step by step; what is so already is left alone."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, Volume, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from filmlet.errors import HubRefused
from filmlet.spaces.space_files import ZERO, Making, files

MOUNT = "/data"
MODEL = "FILMLET_MODEL"  # the variable that says it to the next update too
OURS = "filmlet/"  # a file under this that is not ours any more is deleted


@dataclass(frozen=True)
class Wish:
    """A Space: OWNER/NAME, and what is wanted of it.

    model, hardware, private: None leaves it as it is. bucket: OWNER/NAME of a storage bucket, made
    if need be. source: as Making's.
    """

    space: str
    model: str | None = None
    hardware: str | None = None
    source: str | None = None
    private: bool | None = None
    bucket: str | None = None
    secrets: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """What the Hub knows of a Space. files: git or LFS hash by path."""

    exists: bool = False
    commit: str | None = None
    private: bool = False
    hardware: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    buckets: tuple[str, ...] = ()

    def making(self, wish: Wish) -> Making:
        """What the Space is made for, once the wish is met."""
        return Making(
            model=wish.model or self.variables.get(MODEL, Making.model),
            hardware=wish.hardware or self.hardware or Making.hardware,
            title=wish.space.partition("/")[2],
            source=wish.source,
        )


@dataclass(frozen=True)
class Step:
    """One change, in words, and what makes it."""

    text: str
    act: Callable[[], object]


def bring(wish: Wish, *, only_look: bool = False) -> Iterator[str]:
    """Yield each change once it is made, or would be. Raises HubRefused."""
    with _refusals(wish):
        if get_token() is None:
            raise HubRefused(_LOGIN)
        api = HfApi(library_name="filmlet")
        api.whoami()
        for step in steps(api, wish, look(api, wish.space)):
            if not only_look:
                step.act()
            yield step.text


def address(space: str) -> str:
    """Where people find it."""
    return f"{HfApi().endpoint}/spaces/{space}"


def look(api: HfApi, space: str) -> State:
    """The Space as it is."""
    try:
        info = api.space_info(space)
    except RepositoryNotFoundError:
        return State()
    runtime = api.get_space_runtime(space)
    tree = api.list_repo_tree(space, repo_type="space", recursive=True, revision=info.sha)
    known = [one for one in tree if isinstance(one, RepoFile)]
    return State(
        exists=True,
        commit=info.sha,
        private=bool(info.private),
        hardware=runtime.requested_hardware or runtime.hardware,
        files={one.path: one.lfs.sha256 if one.lfs else one.blob_id for one in known},
        variables={key: v.value for key, v in api.get_space_variables(space).items()},
        buckets=tuple(v.source for v in runtime.volumes or () if v.mount_path == MOUNT),
    )


def steps(api: HfApi, wish: Wish, state: State) -> Iterator[Step]:
    """What is to be done, in order: the first start finds everything in its place."""
    space, making = wish.space, state.making(wish)
    if not state.exists:
        create = partial(
            api.create_repo, space, repo_type="space", space_sdk="gradio", private=wish.private
        )
        kind = "private" if wish.private else "public"
        yield Step(f"create the {kind} Space {space}", create)
    elif wish.private is not None and wish.private != state.private:
        change = partial(api.update_repo_settings, space, repo_type="space", private=wish.private)
        yield Step(f"make it {'private' if wish.private else 'public'}", change)
    if wish.bucket and wish.bucket not in state.buckets:
        yield Step(f"attach the bucket {wish.bucket} at {MOUNT}", partial(_attach, api, wish))
    for key, value in ({MODEL: making.model} | wish.variables).items():
        if state.variables.get(key) != value:
            yield Step(
                f"set the variable {key}", partial(api.add_space_variable, space, key, value)
            )
    for key, value in wish.secrets.items():
        # A secret cannot be read back, so nobody knows whether it is this one already.
        yield Step(f"set the secret {key}", partial(api.add_space_secret, space, key, value))
    if making.hardware != (state.hardware or Making.hardware):
        ask = partial(api.request_space_hardware, space, making.hardware)  # type: ignore[arg-type]
        yield Step(f"ask for the hardware {making.hardware}", ask)
    yield from _commit(api, space, files(making), state)


def _attach(api: HfApi, wish: Wish) -> None:
    assert wish.bucket
    api.create_bucket(wish.bucket, private=True, exist_ok=True)
    volume = Volume(type="bucket", source=wish.bucket, mount_path=MOUNT)
    api.set_space_volumes(wish.space, [volume])


def _commit(api: HfApi, space: str, wanted: dict[str, bytes], state: State) -> Iterator[Step]:
    """One commit of the files that differ, if any does."""
    changed = [p for p, content in wanted.items() if state.files.get(p) not in hashes(content)]
    gone = [p for p in state.files if p.startswith(OURS) and p not in wanted]
    if not changed and not gone:
        return
    new = [path for path in changed if path not in state.files]
    operations = [
        *(CommitOperationAdd(path, wanted[path]) for path in changed),
        *(CommitOperationDelete(path) for path in gone),
    ]
    text = f"commit {len(new)} new, {len(changed) - len(new)} changed, {len(gone)} deleted files"
    send = partial(
        api.create_commit, space, operations, repo_type="space",
        commit_message="Update filmlet", parent_commit=state.commit,
    )  # fmt: skip
    yield Step(text, send)


def hashes(content: bytes) -> tuple[str, str]:
    """What the Hub calls a file by: git's hash of it, and LFS' for a large one."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return git.hexdigest(), hashlib.sha256(content).hexdigest()


_LOGIN = (
    "The Hub does not know you: run `hf auth login`, or set HF_TOKEN to a token that may write."
)


@contextmanager
def _refusals(wish: Wish) -> Iterator[None]:
    try:
        yield
    except HfHubHTTPError as error:
        raise HubRefused(_sentence(wish, error)) from error
    except (httpx2.TransportError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise HubRefused(f"The Hub cannot be reached: {reason}") from error


def _sentence(wish: Wish, error: HfHubHTTPError) -> str:
    said = error.server_message or str(error).splitlines()[0]
    match error.response.status_code:
        case 401:
            return _LOGIN
        case 402:
            return f"The Hub wants to be paid for {wish.hardware} first: {said}"
        case 403 if "/hardware" in str(error) and wish.hardware == ZERO:
            return f"The Hub gives {ZERO} to PRO accounts and paying organizations only: {said}"
        case 403:
            return f"Your token may not change {wish.space}; take one that may write there: {said}"
        case 409:
            return f"{wish.space} is being changed by somebody else, or its name is taken: {said}"
        case 412:
            return f"{wish.space} was changed meanwhile; run this again."
        case 429:
            return f"The Hub had too many requests from you; wait some minutes: {said}"
        case status:
            return f"The Hub answered {status}: {said}"
