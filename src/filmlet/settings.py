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
    """Where filmlet keeps things, and how much of them.

    device: `cpu`, `cuda`, `mps`, or None for the best there is. offload: how a
    model is kept in memory, `none`, `model`, `layerwise_casting` or `sequential`; None is the
    fastest mode that fits.
    engine: what computes on a CPU, `torch`, `openvino`, or `auto`: OpenVINO where it can. cache:
    folder of what was compiled or found out. compile: 1 has torch compile a transformer's blocks,
    too. fp8: 1 has a GPU multiply a transformer's weights in 8 bits, which is lossy. cuda_graphs:
    1 has
    a GPU replay the steps of short clips. int8: 0 keeps OpenVINO's decoder from multiplying in 8
    bits, which it does where the CPU has instructions for it.
    allow_download: weights that are not here may be fetched from the Hub; 0 forbids it.
    home: folder of the queue and its files. database_url: None is a SQLite file in `home`.
    storage_url: of finished clips, a folder or s3://bucket/prefix; None is a folder in `home`.
    lease_s: after so long without a sign of life a worker counts as dead.
    max_queued, max_active, max_per_minute: jobs in all, of one user, and submitted by one user.
    seconds_per_day: of video that one user may ask for, 0 is any number.
    model: that the page begins with.
    webhook_url, webhook_secret (whsec_ and base64): who is told of ended jobs without a key of
    their own; webhook_private: addresses in private networks may be told.
    keep_days, keep_gb: how long finished jobs stay, and how much disk they may take.
    max_connections, max_connections_per_address: open to the server, 0 of one address is any
    number; proxies are not counted.
    forwarded_allow_ips: addresses of proxies whose X-Forwarded headers are believed, with commas
    between them, or `*`; without FILMLET_ before it the variable is uvicorn's own, and as good.
    metrics: who may read /metrics: everybody who can reach it (`open`), admins (`key`), or nobody.
    """

    device: str | None = None
    offload: str | None = None
    engine: str = "auto"
    cache: Path = field(default_factory=lambda: _home() / ".cache" / "filmlet")
    compile: int = 0
    fp8: int = 0
    cuda_graphs: int = 0
    int8: int = 1
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
