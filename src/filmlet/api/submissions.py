"""Planning and queueing of clips, for the API and the page."""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from starlette.datastructures import UploadFile

from filmlet.api.dependencies import AppState, Caller
from filmlet.api.schemas import VideoCreate, VideoExtend, VideoPlan
from filmlet.api.uploads import FRAMES, save_uploads
from filmlet.core.guide import Guide
from filmlet.core.request import ClipRequest
from filmlet.errors import JobConflict, PermissionDenied, UnknownJob, UnknownModel
from filmlet.jobs import Job, Priority, SubmitOptions
from filmlet.models import REGISTRY, check_prompt

VIDEO_ID = re.compile(r"clip_[0-9a-f]{24}")


def find_job(id: str, shared: AppState, who: Caller) -> Job:
    """Return a job that the caller may see. Raises UnknownJob."""
    if not VIDEO_ID.fullmatch(id):
        raise UnknownJob(f"There is no video {id!r}.")
    return shared.queue.get_job(id, who.visible_owner)


def check_model(model: str) -> str:
    """Return the name of a model of the registry; folders are not for clients.

    Raises UnknownModel.
    """
    if not model.strip():
        raise UnknownModel(f"The name of the model is empty; there are {', '.join(REGISTRY)}.")
    if model not in REGISTRY:
        raise UnknownModel(f"There is no model {model!r}; there are {', '.join(REGISTRY)}.")
    return model


def submit_options(who: Caller, body: VideoCreate | VideoExtend, key: str | None) -> SubmitOptions:
    """Return the options of a submission. Raises PermissionDenied."""
    if body.priority == Priority.HIGH and who.visible_owner is not None:
        raise PermissionDenied("Only an admin's key may ask for high priority.", param="priority")
    return who.submit_options(body.priority, key)


def submit(
    shared: AppState, body: VideoCreate, options: SubmitOptions, guides: Sequence[Guide] = ()
) -> Job:
    """Queue a clip. Raises what `Queue.submit` raises."""
    check_model(body.model)
    return shared.queue.submit(body.to_clip_request(guides), options)


def submit_uploads(
    shared: AppState, body: VideoCreate, options: SubmitOptions, images: dict[str, UploadFile]
) -> Job:
    """Queue a clip with uploaded images. Raises what `Queue.submit` raises."""
    with _as_guides(images) as guides:
        return submit(shared, body, options, guides)


def plan_video(shared: AppState, body: VideoCreate, guides: Sequence[Guide] = ()) -> VideoPlan:
    """Plan a clip without queueing it. Raises what `Queue.forecast` raises."""
    check_model(body.model)
    return _forecast(shared, body.to_clip_request(guides))


def _forecast(shared: AppState, request: ClipRequest) -> VideoPlan:
    forecast = shared.queue.forecast(request)
    card, prompts = forecast.plan.card, forecast.plan.request.prompts
    return VideoPlan.from_forecast(forecast, [check_prompt(card, prompt) for prompt in prompts])


def plan_uploads(shared: AppState, body: VideoCreate, images: dict[str, UploadFile]) -> VideoPlan:
    """Plan a clip with uploaded images. Raises what `Queue.forecast` raises."""
    with _as_guides(images) as guides:
        return plan_video(shared, body, guides)


def extend_own(shared: AppState, body: VideoExtend, options: SubmitOptions, source: Job) -> Job:
    """Extend a clip of this server. Raises what `Queue.extend` raises."""
    model = check_model(body.model or source.model)
    return shared.queue.extend(source.id, body.to_clip_request(model), options)


def extend_file(shared: AppState, body: VideoExtend, options: SubmitOptions, path: Path) -> Job:
    """Extend a video file of this machine. Raises what `Queue.submit` raises."""
    model = check_model(body.model or "pocket")
    return shared.queue.submit(body.to_clip_request(model, str(path)), options)


def plan_extension(shared: AppState, body: VideoExtend, path: Path) -> VideoPlan:
    """Plan the extension of a video file of this machine. Raises what `Queue.forecast` raises."""
    model = check_model(body.model or "pocket")
    return _forecast(shared, body.to_clip_request(model, str(path)))


def plan_own_extension(shared: AppState, body: VideoExtend, source: Job) -> VideoPlan:
    """Plan the extension of a clip of this server. Raises JobConflict, too."""
    if source.clip is None:
        raise JobConflict(f"{source.id} is {source.status}; it has no clip to extend.")
    body = body.model_copy(update={"model": body.model or source.model})
    with TemporaryDirectory(prefix="filmlet-") as folder:
        path = Path(folder) / source.clip
        with shared.queue.storage.open(source.id, source.clip) as clip, path.open("wb") as file:
            shutil.copyfileobj(clip, file)
        return plan_extension(shared, body, path)


def extend_upload(
    shared: AppState, body: VideoExtend, options: SubmitOptions, upload: UploadFile
) -> Job:
    """Extend an uploaded video. Raises what `Queue.submit` raises."""
    with save_uploads({"video": upload}, video=True) as paths:
        return extend_file(shared, body, options, paths["video"])


@contextmanager
def _as_guides(images: dict[str, UploadFile]) -> Iterator[list[Guide]]:
    with save_uploads(images) as paths:
        yield [Guide(str(path), FRAMES[name]) for name, path in paths.items()]
