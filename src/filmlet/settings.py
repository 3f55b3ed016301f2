"""What the environment says: the only reader of it."""

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from filmlet.errors import InvalidSetting

CHOICES = {  # that a setting can be
    "offload": ("none", "model", "layerwise_casting", "sequential"),
    "engine": ("auto", "torch", "openvino"),
    "metrics": ("open", "key", "off"),
}


def _home() -> Path:
    """The user's folder; a user who has none can write nowhere that is not set by name."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/nonexistent")


@dataclass(frozen=True)
class Settings:
    """All settings, read from the environment.

    device: `cpu`, `cuda`, `cuda:N` or `mps`; not set, the best there is.
    offload: how much of a model is in memory, `none`, `model`, `layerwise_casting` or `sequential`;
    not set, the fastest mode that fits.
    engine: backend, `torch`, `openvino` or `auto` (OpenVINO for single-stage models on a CPU).
    cache: folder of compiled models; may be deleted.
    compile: 1 compiles the transformer's blocks with torch.compile.
    fp8: 1 uses 8-bit matrix multiplication on a GPU; changes clips a little.
    cuda_graphs: 1 replays the steps of short clips as CUDA graphs.
    int8: 0 switches int8 matrix multiplication in OpenVINO's decoder off.
    openvino_plain: 1 builds OpenVINO's graphs without the forms of layers that are faster on some
    CPUs, to find out whether one of them is at fault; slower, other last bits.
    allow_download: 0 forbids downloads from the Hub.
    model: default model of the page.
    home: folder of the queue and its files.
    database_url: `postgresql://...`; not set, SQLite in the home folder.
    storage_url: finished files, a folder or `s3://bucket/prefix`; not set, in the home folder.
    worker: name of this machine's worker, unique among the machines of one database.
    lease_s: seconds without a heartbeat after which a worker counts as dead.
    max_queued: queued jobs of all users.
    max_active: unfinished jobs of one user.
    max_per_minute: submissions a minute of one user.
    seconds_per_day: seconds of video a day of one user; 0 is unlimited.
    webhook_url: called when a job ends, unless its key has a webhook of its own.
    webhook_secret: signs these calls, `whsec_` and base64.
    webhook_private: 1 allows webhooks to private networks.
    keep_days: days after which finished jobs are deleted.
    keep_gb: GB of clips above which the oldest finished jobs are deleted.
    """

    device: str | None = None
    offload: str | None = None
    engine: str = "auto"
    cache: Path = field(default_factory=lambda: _home() / ".cache" / "filmlet")
    compile: int = 0
    fp8: int = 0
    cuda_graphs: int = 0
    int8: int = 1
    openvino_plain: int = 0
    allow_download: int = 1
    model: str = "pocket"
    home: Path = field(default_factory=lambda: _home() / ".local" / "share" / "filmlet")
    database_url: str | None = None
    storage_url: str | None = None
    worker: str = field(default_factory=socket.gethostname)
    lease_s: float = 60.0
    max_queued: int = 1000
    max_active: int = 100
    max_per_minute: int = 60
    seconds_per_day: float = 0.0
    webhook_url: str | None = None
    webhook_secret: str | None = None
    webhook_private: int = 0
    keep_days: float = 30.0
    keep_gb: float = 20.0
    max_connections: int = 1000
    max_connections_per_address: int = 200
    forwarded_allow_ips: str = "127.0.0.1,::1"
    metrics: str = "open"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """FILMLET_DEVICE, FILMLET_HOME, FILMLET_DATABASE_URL, ...: one variable a setting.

        Raises InvalidSetting.
        """
        values: dict[str, Any] = {}
        for name, value in vars(cls()).items():
            variable = f"FILMLET_{name.upper()}"
            text = environment.get(variable)
            if not text and name == "forwarded_allow_ips":
                text = environment.get("FORWARDED_ALLOW_IPS")
            if not text:
                continue
            if text not in CHOICES.get(name, (text,)):
                choices = ", ".join(CHOICES[name])
                raise InvalidSetting(f"{variable} must be one of {choices}, not {text!r}.")
            kind = str if value is None else type(value)
            try:
                values[name] = kind(text)
            except ValueError:
                noun = "a whole number" if kind is int else "a number"
                raise InvalidSetting(f"{variable} must be {noun}, not {text!r}.") from None
        return cls(**values)

    def to_environ(self) -> dict[str, str]:
        """The environment of a process that is to have the same settings."""
        variables = {f"FILMLET_{k.upper()}": str(v) for k, v in vars(self).items() if v is not None}
        return os.environ | variables


@dataclass(frozen=True)
class SpaceEnvironment:
    """What the platform of a Space says to what runs there.

    space: OWNER/NAME, empty elsewhere. is_zerogpu: ZeroGPU, a GPU for the length of a call.
    """

    space: str = ""
    is_zerogpu: bool = False
    host: str = "0.0.0.0"
    port: int = 7860

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """SPACE_ID, SPACES_ZERO_GPU, GRADIO_SERVER_NAME, GRADIO_SERVER_PORT."""
        port = environment.get("GRADIO_SERVER_PORT") or "7860"
        if not port.isdecimal():
            raise InvalidSetting(f"GRADIO_SERVER_PORT must be a whole number, not {port!r}.")
        return cls(
            space=environment.get("SPACE_ID", ""),
            is_zerogpu=environment.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true"),
            host=environment.get("GRADIO_SERVER_NAME") or "0.0.0.0",
            port=int(port),
        )


def bare_environment() -> dict[str, str]:
    """What Python needs to start with this process's packages: no key, no address of anything."""
    names = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "PYTHONHOME")
    own = {name: os.environ[name] for name in names if name in os.environ}
    return own | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def read_variable(name: str) -> str:
    """A variable that somebody names. Raises InvalidSetting where there is none."""
    value = os.environ.get(name)
    if not value:
        raise InvalidSetting(f"There is no variable {name} in the environment, or it is empty.")
    return value


def disable_gradio_telemetry(passing: Path) -> None:
    """Tell the page's libraries to send nothing anywhere, and where their passing files go."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(passing)
