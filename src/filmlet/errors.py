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
    """The request is not valid; `param` names the parameter.

    What to do: Correct the parameter as the message says.
    """

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param

    @property
    def code(self) -> str:  # type: ignore[override]
        """`invalid_prompt`, `invalid_size`, ...: one code a setting."""
        return STABLE_CODES.get(self.param, f"invalid_{self.param}")


class UnsuitedGuidance(InvalidRequest):
    """The model is distilled to run without guidance.

    What to do: Leave guidance out, or set `force_guidance` (`--force-guidance`).
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, param="guidance")


class UnknownModel(InvalidRequest):
    """There is no model or folder of this name.

    What to do: `filmlet models` lists the names.
    """

    code = "unknown_model"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="model")


class InvalidSetting(FilmletError):
    """An environment variable has a value that cannot be read.

    What to do: Correct the variable that the message names.
    """

    code = "invalid_setting"


class CheckpointNotFound(FilmletError):
    """Files of a checkpoint are missing on this machine.

    What to do: Fetch or copy them again.
    """

    code = "checkpoint_missing"


class ModelNotFetched(CheckpointNotFound):
    """A model of the Hub is not on this machine, and is not fetched by itself; `model` names it.

    What to do: `filmlet models pull NAME`, or allow downloads.
    """

    def __init__(self, message: str, *, model: str) -> None:
        super().__init__(message)
        self.model = model


class LoraNotFound(CheckpointNotFound, InvalidRequest):
    """A LoRA of the Hub is missing on this machine.

    What to do: Download it, or allow downloads.
    """


class CheckpointCorrupt(FilmletError):
    """Files of a checkpoint cannot be used: truncated, of another model, or no checkpoint.

    What to do: Delete and download them again: `filmlet models prune NAME`, then `pull`.
    """

    code = "checkpoint_damaged"


class LoraCorrupt(CheckpointCorrupt, InvalidRequest):
    """The file of a LoRA cannot be used.

    What to do: Name another file.
    """


class HubUnreachable(FilmletError):
    """The Hugging Face Hub cannot be reached.

    What to do: Check the network and `HF_ENDPOINT`, then try again.
    """

    code = "hub_unreachable"


class HubAccessDenied(FilmletError):
    """The Hub denies access, or has no such repository or file.

    What to do: Check the name; set `HF_TOKEN` for gated repositories.
    """

    code = "hub_refused"


class OutputExists(FilmletError):
    """The output file exists.

    What to do: Choose another name or pass `--force`.
    """

    code = "output_exists"


class OutputUnwritable(FilmletError):
    """The output path cannot be written to.

    What to do: Check folder, permissions and suffix.
    """

    code = "output_unwritable"


class MissingDependency(FilmletError):
    """A library that this needs is not installed.

    What to do: Install the extra that the message names.
    """

    code = "library_missing"


class DiskFull(FilmletError):
    """The disk is full.

    What to do: Free space, or lower `FILMLET_KEEP_GB`; then retry the job.
    """

    code = "disk_full"
    public_message = "The server's disk is full; try again later."


class OutOfMemory(FilmletError):
    """Memory is too small for the clip in every offload mode.

    What to do: A smaller or shorter clip, another model, or a machine with more memory.
    """

    code = "out_of_memory"


class ForkedProcess(FilmletError):
    """The process was forked from one that has made a clip, whose threads it lacks.

    What to do: Start it with `multiprocessing.get_context("spawn")`, or make no clip before.
    """

    code = "forked_process"


class Cancelled(FilmletError):
    """The clip was cancelled.

    What to do: `retry` continues from its last finished stage.
    """

    code = "cancelled"


class JobLost(FilmletError):
    """The job that a worker makes is another worker's now, or nobody's."""

    code = "job_lost"


class NonFiniteValues(FilmletError):
    """The model computed non-finite values, in float32 as well.

    What to do: Check the checkpoint and the LoRAs.
    """

    code = "not_finite"


class UnknownJob(FilmletError):
    """There is no job of this id, or it belongs to another key.

    What to do: `filmlet jobs` lists yours.
    """

    code = "unknown_job"


class JobConflict(FilmletError):
    """The job's status does not allow this.

    What to do: Read the job and try again when its status has changed.
    """

    code = "job_conflict"


class IdempotencyKeyReused(JobConflict):
    """The key of an earlier request came with another one."""

    code = "idempotency_key_reused"


class ConversionFailed(FilmletError):
    """A finished clip cannot be converted, or not in the time and memory allowed for it.

    What to do: Download the MP4, or choose another format.
    """

    code = "conversion_failed"


class UnknownKey(FilmletError):
    """The API key is missing or wrong.

    What to do: Send `Authorization: Bearer sk-...`; `filmlet keys` lists names.
    """

    code = "unknown_key"


class PermissionDenied(FilmletError):
    """Who asks is known and may not do this; `param` names what is not allowed."""

    code = "permission_denied"

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


class NotSupported(InvalidRequest):
    """The model or this server does not support what `param` asks for.

    What to do: Choose another model, or leave the parameter out.
    """

    code = "not_offered"


class EnhancementFailed(FilmletError):
    """The endpoint that enhances prompts gave no answer that can be used.

    What to do: Use the prompt as it is, or try again.
    """

    code = "enhancement_failed"

    def __init__(self, message: str, detail: str = "") -> None:
        """detail: for the log and the command line; clients do not read it."""
        self.public_message = f"{message} The prompt can be used as it is."
        super().__init__(self.public_message + (f" ({detail})" if detail else ""))


class EnhancementUnavailable(EnhancementFailed):
    """Nothing enhances prompts for this model, or it cannot be reached in time, or run here.

    What to do: Set `FILMLET_ENHANCE_URL` and `FILMLET_ENHANCE_MODEL`; start the endpoint.
    """

    code = "enhancement_unavailable"


class TooManyJobs(FilmletError):
    """A limit of the queue or of the key is reached.

    What to do: Wait for `Retry-After` seconds, or raise the limit.
    """

    code = "too_many_jobs"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooManyRequests(TooManyJobs):
    """One caller has too many requests in hand that take long."""

    code = "too_many_requests"


class DatabaseUnusable(FilmletError):
    """The database cannot be reached, read or written, or is of a newer filmlet.

    What to do: Check `FILMLET_DATABASE_URL`, the disk and the version.
    """

    code = "database_unusable"
    public_message = "The database cannot be used; the server's log says why. Try again later."


class DatabaseGone(DatabaseUnusable):
    """The queue's SQLite file was deleted or replaced while it was open."""


class StorageUnusable(FilmletError):
    """The storage cannot be reached, read or written.

    What to do: Check `FILMLET_STORAGE_URL` and its credentials; then retry the job.
    """

    code = "storage_unusable"
    public_message = "The clips cannot be reached; the server's log says why. Try again later."


class StoredFileMissing(StorageUnusable):
    """A file of a job is not in the storage, or not any more.

    What to do: Read the job again; make a clip that is lost once more.
    """

    code = "file_missing"


class WorkerNameInUse(FilmletError):
    """Another worker of this name is alive.

    What to do: Set `FILMLET_WORKER` to another name.
    """

    code = "worker_taken"


class AddressUnusable(FilmletError):
    """The address or port cannot be listened on.

    What to do: Choose another `--port` or `--host`.
    """

    code = "address_unusable"


class SystemRefused(FilmletError):
    """The operating system refuses a file, a folder or a process that is needed."""

    code = "system_refused"


class FolderNotEmpty(FilmletError):
    """The output folder holds other files.

    What to do: Choose an empty folder.
    """

    code = "folder_taken"


class GpuUnavailable(FilmletError):
    """ZeroGPU assigned no GPU.

    What to do: Try again.
    """

    code = "gpu_refused"


class GpuQuotaUsed(GpuUnavailable):
    """The GPU quota of the visitor or the Space is used up.

    What to do: A shorter clip, sign in, or wait for the next day.
    """

    code = "gpu_quota_used"


class GpuTooLong(GpuUnavailable):
    """The clip needs the GPU for longer than ZeroGPU allows.

    What to do: A shorter or smaller clip, or own hardware.
    """

    code = "gpu_too_long"


class GpuBusy(GpuUnavailable):
    """No GPU became free in time.

    What to do: Try again.
    """

    code = "gpu_busy"


class GpuLost(GpuUnavailable):
    """The GPU was taken away before the clip was finished.

    What to do: Continue the job: it starts at the last saved step.
    """

    code = "gpu_lost"


class RemoteError(FilmletError):
    """An error of another process, with its code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ApiKeyRequired(FilmletError):
    """A server on a public address needs API keys.

    What to do: `filmlet keys add NAME`, or `--no-keys`.
    """

    code = "needs_key"


def abbreviate(value: object) -> str:
    """Return a value as a message can show it, whatever its length."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of too many digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
