"""Everything that can go wrong, as one tree; each leaf has a stable code and a sentence."""


class FilmletError(Exception):
    """The root. `code` never changes between versions; the message may.

    public_message: what a client of a server reads instead, where the message names paths or
    addresses of the server.
    """

    code = "error"
    public_message: str | None = None


STABLE_CODES = {"extra_prompts": "invalid_then"}  # codes outlive the names of settings


class InvalidRequest(FilmletError):
    """The request cannot be met as asked; `param` names the setting at fault."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param

    @property
    def code(self) -> str:  # type: ignore[override]
        """`invalid_prompt`, `invalid_size`, ...: one code a setting."""
        return STABLE_CODES.get(self.param, f"invalid_{self.param}")


class UnknownModel(InvalidRequest):
    """No model of this name, and no folder either."""

    code = "unknown_model"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="model")


class InvalidSetting(FilmletError):
    """The environment says something that no setting can mean."""

    code = "invalid_setting"


class CheckpointNotFound(FilmletError):
    """Files of a checkpoint are not there."""

    code = "checkpoint_missing"


class LoraNotFound(CheckpointNotFound, InvalidRequest):
    """A LoRA of the Hub is not on this machine: whoever names it can name another."""


class CheckpointCorrupt(FilmletError):
    """Files of a checkpoint are there and cannot be used."""

    code = "checkpoint_damaged"


class LoraCorrupt(CheckpointCorrupt, InvalidRequest):
    """The file of a LoRA is there and cannot be used: whoever names it can name another."""


class HubUnreachable(FilmletError):
    """Weights are to be fetched, and the Hub does not answer."""

    code = "hub_unreachable"


class HubAccessDenied(FilmletError):
    """The Hub does not give what is asked for, or does not let us do this."""

    code = "hub_refused"


class OutputExists(FilmletError):
    """The file to write is already there."""

    code = "output_exists"


class OutputUnwritable(FilmletError):
    """The place to write cannot be written to."""

    code = "output_unwritable"


class MissingDependency(FilmletError):
    """What is asked for takes a library that is not installed."""

    code = "library_missing"


class DiskFull(FilmletError):
    """No room for the clip."""

    code = "disk_full"
    public_message = "The server's disk is full; try again later."


class OutOfMemory(FilmletError):
    """Too little memory for the clip, however the model is held."""

    code = "out_of_memory"


class Cancelled(FilmletError):
    """Whoever asked for the clip wants it no longer."""

    code = "cancelled"


class JobLost(FilmletError):
    """The job that a worker makes is another worker's now, or nobody's."""

    code = "job_lost"


class NonFiniteValues(FilmletError):
    """The model computed something that is not a number, in float32 as well."""

    code = "not_finite"


class UnknownJob(FilmletError):
    """No job of this id, or none of this user's."""

    code = "unknown_job"


class JobConflict(FilmletError):
    """The job is not in a state in which this can be done."""

    code = "job_conflict"


class IdempotencyKeyReused(JobConflict):
    """The key of an earlier request came with another one."""

    code = "idempotency_key_reused"


class UnknownKey(FilmletError):
    """No key of this name, or the secret is nobody's."""

    code = "unknown_key"


class PermissionDenied(FilmletError):
    """Who asks is known and may not do this; `param` names what is not allowed."""

    code = "permission_denied"

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


class NotSupported(InvalidRequest):
    """The model, or this server, cannot do what `param` asks for."""

    code = "not_offered"


class TooManyJobs(FilmletError):
    """A limit of the queue is reached; `retry_after_s` says when to try again."""

    code = "too_many_jobs"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooManyRequests(TooManyJobs):
    """One caller has too many requests in hand that take long."""

    code = "too_many_requests"


class DatabaseUnusable(FilmletError):
    """The queue's database cannot be reached, read or written."""

    code = "database_unusable"
    public_message = "The database cannot be used; the server's log says why. Try again later."


class DatabaseGone(DatabaseUnusable):
    """The queue's SQLite file was deleted or replaced while it was open."""


class StorageUnusable(FilmletError):
    """The place of finished clips cannot be reached, read or written."""

    code = "storage_unusable"
    public_message = "The clips cannot be reached; the server's log says why. Try again later."


class WorkerNameInUse(FilmletError):
    """Another worker of this name is alive."""

    code = "worker_taken"


class AddressUnusable(FilmletError):
    """The server cannot listen where it was told to."""

    code = "address_unusable"


class SystemRefused(FilmletError):
    """The operating system refuses a file, a folder or a process that is needed."""

    code = "system_refused"


class FolderNotEmpty(FilmletError):
    """The folder to write into holds other things already."""

    code = "folder_taken"


class GpuUnavailable(FilmletError):
    """No GPU was lent for this clip."""

    code = "gpu_refused"


class GpuQuotaUsed(GpuUnavailable):
    """The visitor's, or the Space's, time on the GPU is used up for now."""

    code = "gpu_quota_used"


class GpuTooLong(GpuUnavailable):
    """The clip needs the GPU for longer than it is lent."""

    code = "gpu_too_long"


class GpuBusy(GpuUnavailable):
    """No GPU became free in time."""

    code = "gpu_busy"


class GpuLost(GpuUnavailable):
    """The GPU was taken away before the clip was done."""

    code = "gpu_lost"


class RemoteError(FilmletError):
    """What went wrong in another process, with the code that it has there."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ApiKeyRequired(FilmletError):
    """A server that others can reach needs keys, or the wish to be open."""

    code = "needs_key"


def abbreviate(value: object) -> str:
    """A value as a message can show it, whatever its length."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of too many digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
