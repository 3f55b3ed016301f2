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

from filmlet.errors import HubAccessDenied
from filmlet.spaces.space_files import ZEROGPU_HARDWARE, SpaceConfig, build_files

MOUNT = "/data"
MODEL = "FILMLET_MODEL"  # the variable that says it to the next update too
OURS = "filmlet/"  # a file under this that is not ours any more is deleted


@dataclass(frozen=True)
class SpaceSpec:
    """A Space: OWNER/NAME, and what is wanted of it.

    model, hardware, private: None leaves it as it is. bucket: OWNER/NAME of a storage bucket, made
    if need be. source: as those of SpaceConfig.
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
class SpaceState:
    """State of a Space at the Hub. files: git or LFS hash by path."""

    exists: bool = False
    commit: str | None = None
    private: bool = False
    hardware: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    buckets: tuple[str, ...] = ()

    def config_for(self, wish: SpaceSpec) -> SpaceConfig:
        """Return the configuration after the update."""
        return SpaceConfig(
            model=wish.model or self.variables.get(MODEL, SpaceConfig.model),
            hardware=wish.hardware or self.hardware or SpaceConfig.hardware,
            title=wish.space.partition("/")[2],
            source=wish.source,
        )


@dataclass(frozen=True)
class DeployStep:
    """One change, in words, and what makes it."""

    text: str
    run: Callable[[], object]


def deploy(wish: SpaceSpec, *, only_look: bool = False) -> Iterator[str]:
    """Yield each change once it is made, or would be. Raises HubAccessDenied."""
    with _translate_hub_errors(wish):
        if get_token() is None:
            raise HubAccessDenied(_LOGIN)
        api = HfApi(library_name="filmlet")
        api.whoami()
        for step in plan_steps(api, wish, read_state(api, wish.space)):
            if not only_look:
                step.run()
            yield step.text


def space_url(space: str) -> str:
    """Return the URL of the Space's page."""
    return f"{HfApi().endpoint}/spaces/{space}"


def read_state(api: HfApi, space: str) -> SpaceState:
    """Return the Space as it is."""
    try:
        info = api.space_info(space)
    except RepositoryNotFoundError:
        return SpaceState()
    runtime = api.get_space_runtime(space)
    tree = api.list_repo_tree(space, repo_type="space", recursive=True, revision=info.sha)
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    return SpaceState(
        exists=True,
        commit=info.sha,
        private=bool(info.private),
        hardware=runtime.requested_hardware or runtime.hardware,
        files={entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in files},
        variables={key: v.value for key, v in api.get_space_variables(space).items()},
        buckets=tuple(v.source for v in runtime.volumes or () if v.mount_path == MOUNT),
    )


def plan_steps(api: HfApi, wish: SpaceSpec, state: SpaceState) -> Iterator[DeployStep]:
    """Return the steps of a deployment in order: the first start finds everything in its place."""
    space, making = wish.space, state.config_for(wish)
    if not state.exists:
        create = partial(
            api.create_repo, space, repo_type="space", space_sdk="gradio", private=wish.private
        )
        kind = "private" if wish.private else "public"
        yield DeployStep(f"create the {kind} Space {space}", create)
    elif wish.private is not None and wish.private != state.private:
        change = partial(api.update_repo_settings, space, repo_type="space", private=wish.private)
        yield DeployStep(f"make it {'private' if wish.private else 'public'}", change)
    if wish.bucket and wish.bucket not in state.buckets:
        yield DeployStep(
            f"attach the bucket {wish.bucket} at {MOUNT}", partial(_attach_bucket, api, wish)
        )
    for key, value in ({MODEL: making.model} | wish.variables).items():
        if state.variables.get(key) != value:
            yield DeployStep(
                f"set the variable {key}", partial(api.add_space_variable, space, key, value)
            )
    for key, value in wish.secrets.items():
        # A secret cannot be read back, so nobody knows whether it is this one already.
        yield DeployStep(f"set the secret {key}", partial(api.add_space_secret, space, key, value))
    if making.hardware != (state.hardware or SpaceConfig.hardware):
        ask = partial(api.request_space_hardware, space, making.hardware)  # type: ignore[arg-type]
        yield DeployStep(f"ask for the hardware {making.hardware}", ask)
    yield from _commit_files(api, space, build_files(making), state)


def _attach_bucket(api: HfApi, wish: SpaceSpec) -> None:
    assert wish.bucket
    api.create_bucket(wish.bucket, private=True, exist_ok=True)
    volume = Volume(type="bucket", source=wish.bucket, mount_path=MOUNT)
    api.set_space_volumes(wish.space, [volume])


def _commit_files(
    api: HfApi, space: str, contents: dict[str, bytes], state: SpaceState
) -> Iterator[DeployStep]:
    """Commit the files that differ, if any does, at once."""
    changed = [
        p for p, content in contents.items() if state.files.get(p) not in hub_hashes(content)
    ]
    gone = [p for p in state.files if p.startswith(OURS) and p not in contents]
    if not changed and not gone:
        return
    new = [path for path in changed if path not in state.files]
    operations = [
        *(CommitOperationAdd(path, contents[path]) for path in changed),
        *(CommitOperationDelete(path) for path in gone),
    ]
    text = f"commit {len(new)} new, {len(changed) - len(new)} changed, {len(gone)} deleted files"
    send = partial(
        api.create_commit, space, operations, repo_type="space",
        commit_message="Update filmlet", parent_commit=state.commit,
    )  # fmt: skip
    yield DeployStep(text, send)


def hub_hashes(content: bytes) -> tuple[str, str]:
    """Return the hashes of a file at the Hub: git's, and LFS' for a large one."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return git.hexdigest(), hashlib.sha256(content).hexdigest()


_LOGIN = (
    "The Hub does not know you: run `hf auth login`, or set HF_TOKEN to a token that may write."
)


@contextmanager
def _translate_hub_errors(wish: SpaceSpec) -> Iterator[None]:
    try:
        yield
    except HfHubHTTPError as error:
        raise HubAccessDenied(_error_message(wish, error)) from error
    except (httpx2.TransportError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise HubAccessDenied(f"The Hub cannot be reached: {reason}") from error


def _error_message(wish: SpaceSpec, error: HfHubHTTPError) -> str:
    said = error.server_message or str(error).splitlines()[0]
    match error.response.status_code:
        case 401:
            return _LOGIN
        case 402:
            return f"The Hub wants to be paid for {wish.hardware} first: {said}"
        case 403 if "/hardware" in str(error) and wish.hardware == ZEROGPU_HARDWARE:
            return (
                f"The Hub gives {ZEROGPU_HARDWARE} to PRO accounts and paying organizations "
                f"only: {said}"
            )
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
