"""What the environment says: the only reader of it."""

import base64
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from filmlet.errors import InvalidSetting, abbreviate

CHOICES = {  # that a setting can be
    "offload": ("none", "model", "layerwise_casting", "sequential"),
    "engine": ("auto", "torch", "openvino"),
    "metrics": ("open", "key", "off"),
    "enhancer": ("auto", "model"),
}
MANY = 1e9
FLAG = (0, 1)
RANGES: dict[str, tuple[float, float]] = {  # of numbers: the least and the greatest
    "compile": FLAG, "fp8": FLAG, "cuda_graphs": FLAG, "int8": FLAG, "openvino_plain": FLAG,
    "allow_download": FLAG, "webhook_private": FLAG, "lease_s": (1, 86400), "max_queued": (1, MANY),
    "max_active": (1, MANY), "max_per_minute": (1, MANY), "seconds_per_day": (0, MANY),
    "keep_days": (0, 36500), "keep_gb": (0, MANY), "max_connections": (1, MANY),
    "max_connections_per_address": (1, MANY), "enhance_timeout_s": (1, 600),
}  # fmt: skip
FOLDERS = ("cache", "home", "storage_url")
SECRETS = (  # whose values no message shows
    "database_url", "webhook_url", "webhook_secret", "enhance_url", "enhance_key",
)  # fmt: skip
MAX_CHARS = 4096
MAX_WORKER_CHARS = 100  # it is part of a file's name
MAX_MODEL_CHARS = 200  # of another server's model
MAX_ROOT_PATH_CHARS = 200
# First segments of the server's own paths: below one of them nobody could tell which is meant.
OWN_SEGMENTS = {
    "assets", "config", "docs", "favicon.ico", "gradio_api", "health", "metrics", "openapi.json",
    "ready", "session", "static", "static-offline-docs", "theme.css", "ui", "v1",
}  # fmt: skip


def _is_database_url(url: str) -> bool:
    if url.startswith("sqlite"):
        return re.fullmatch(r"sqlite:///.+", url) is not None
    return _is_url(url, ("postgresql", "postgresql+psycopg"))


def _is_url(url: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises ValueError where it is none
    except ValueError:
        return False
    return parts.scheme in schemes and url.isprintable() and " " not in url


def _is_http_url(url: str) -> bool:
    return _is_url(url, ("http", "https")) and bool(urlsplit(url).hostname)


def _is_secret(text: str) -> bool:
    try:
        return bool(base64.b64decode(text.removeprefix("whsec_"), validate=True))
    except ValueError:
        return False


def _is_storage(url: str) -> bool:
    scheme, sign, rest = url.partition("://")
    is_scheme = re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) is not None
    return not sign or (is_scheme and rest.strip("/") != "")


def _is_worker_name(name: str) -> bool:
    return name.isprintable() and 0 < len(name) <= MAX_WORKER_CHARS


def _is_model_name(name: str) -> bool:
    return name.isprintable() and 0 < len(name) <= MAX_MODEL_CHARS


def _is_bearer(text: str) -> bool:
    """Return whether a header can carry it."""
    return text.isascii() and text.isprintable() and " " not in text


def _are_networks(text: str) -> bool:
    try:
        networks = [part.strip() for part in text.split(",") if part.strip() != "*"]
        return all(ip_network(network, strict=False) for network in networks)
    except ValueError:
        return False


def is_root_path(text: str) -> bool:
    """Return whether a text is a path that a server can be below, written without escapes."""
    if not text.startswith("/") or len(text) > MAX_ROOT_PATH_CHARS:
        return False
    segments = text.removesuffix("/").split("/")[1:]
    return all(re.fullmatch(r"(?!\.+$)[A-Za-z0-9._~-]+", segment) for segment in segments)


def _is_own_root_path(text: str) -> bool:
    return is_root_path(text) and text.split("/")[1] not in OWN_SEGMENTS


FORMS: dict[str, tuple[Callable[[str], bool], str]] = {  # of texts: a check, and what it asks for
    "device": (
        lambda text: re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,3})?", text) is not None,
        "cpu, cuda, cuda:N or mps",
    ),
    "database_url": (_is_database_url, "postgresql://USER:PASSWORD@HOST/NAME or sqlite:///FILE"),
    "storage_url": (_is_storage, "a folder or s3://BUCKET/PREFIX"),
    "worker": (_is_worker_name, f"at most {MAX_WORKER_CHARS} printable characters"),
    "webhook_url": (_is_http_url, "https://HOST/PATH or http://HOST/PATH"),
    "webhook_secret": (_is_secret, "whsec_ and base64"),
    "enhance_url": (_is_http_url, "http://HOST/PATH or https://HOST/PATH"),
    "enhance_model": (_is_model_name, f"at most {MAX_MODEL_CHARS} printable characters"),
    "enhance_key": (_is_bearer, "printable ASCII characters without spaces"),
    "forwarded_allow_ips": (_are_networks, "addresses or networks with commas between them, or *"),
    "root_path": (
        _is_own_root_path,
        "a path such as /films, of letters, digits and ._~- and not one of the server's own "
        "such as /v1, or / for none",
    ),
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
    int8: 0 switches int8 matrix multiplication in OpenVINO off: decoders are then in the dtype, and
    models of billions of parameters, which OpenVINO computes in 8 bits alone, run on torch.
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
    enhancer: what writes prompts anew for models without a small vocabulary: `auto`, the chat
    endpoint below; `model`, the model's own text encoder where that is a language model (LTX-2.0,
    2.3), which takes the memory of all of it, 25 GB in 16 bits.
    enhance_url: base URL of an OpenAI-compatible chat endpoint that enhances prompts (Ollama,
    llama.cpp, vLLM, OpenAI), such as `http://127.0.0.1:11434/v1`; not set, only prompts of models
    with a small vocabulary are enhanced.
    enhance_model: name of the language model at that endpoint.
    enhance_key: sent to that endpoint as a bearer.
    enhance_timeout_s: seconds until that endpoint must have answered.
    keep_days: days after which finished jobs are deleted.
    keep_gb: GB of clips above which the oldest finished jobs are deleted.
    root_path: path below which a proxy shows the server, such as `/films`; `/` is none. Not set,
    what a trusted proxy sends as X-Forwarded-Prefix, which is ignored otherwise.
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
    enhancer: str = "auto"
    enhance_url: str | None = None
    enhance_model: str | None = None
    enhance_key: str | None = None
    enhance_timeout_s: float = 30.0
    keep_days: float = 30.0
    keep_gb: float = 20.0
    max_connections: int = 1000
    max_connections_per_address: int = 200
    forwarded_allow_ips: str = "127.0.0.1,::1"
    metrics: str = "open"
    root_path: str | None = None

    def __post_init__(self) -> None:
        """Raises InvalidSetting."""
        for name, value in vars(self).items():
            if value is not None:
                check_setting(name, value, _variable(name))
        if self.webhook_url and not self.webhook_secret:
            raise InvalidSetting(
                "FILMLET_WEBHOOK_URL needs FILMLET_WEBHOOK_SECRET, which signs the calls."
            )
        if self.enhance_url and not self.enhance_model:
            raise InvalidSetting(
                "FILMLET_ENHANCE_URL needs FILMLET_ENHANCE_MODEL, a model of that endpoint."
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """FILMLET_DEVICE, FILMLET_HOME, FILMLET_DATABASE_URL, ...: one variable a setting.

        Raises InvalidSetting.
        """
        values: dict[str, Any] = {}
        for name, value in vars(cls()).items():
            variable = _variable(name)
            text = environment.get(variable, "").strip()
            if not text and name == "forwarded_allow_ips":
                variable = "FORWARDED_ALLOW_IPS"
                text = environment.get(variable, "").strip()
            if not text:
                continue
            values[name] = _parse_text(name, variable, text, str if value is None else type(value))
        return cls(**values)

    def to_environ(self) -> dict[str, str]:
        """The environment of a process that is to have the same settings."""
        variables = {f"FILMLET_{k.upper()}": str(v) for k, v in vars(self).items() if v is not None}
        return os.environ | variables


def unknown_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the FILMLET_ variables that are no setting, each with the nearest name or ""."""
    known = [_variable(name) for name in vars(Settings())]
    unknown = [name for name in environment if name.startswith("FILMLET_") and name not in known]
    near = {name: get_close_matches(name, known, n=1, cutoff=0.75) for name in unknown}
    return {name: found[0] if found else "" for name, found in near.items()}


@dataclass(frozen=True)
class SettingValue:
    """One setting as it is. variable: that sets it. source: `default`, or the variable that did."""

    name: str
    variable: str
    value: Any
    source: str


def list_settings(environment: Mapping[str, str] = os.environ) -> list[SettingValue]:
    """Return every setting; secrets are masked. Raises InvalidSetting."""
    rows = []
    for name, value in vars(Settings.from_environment(environment)).items():
        variable, source = _variable(name), "default"
        if environment.get(variable, "").strip():
            source = variable
        elif name == "forwarded_allow_ips" and environment.get("FORWARDED_ALLOW_IPS", "").strip():
            source = "FORWARDED_ALLOW_IPS"
        shown = "***" if name in SECRETS and value else value
        rows.append(SettingValue(name, variable, shown, source))
    return rows


def _variable(name: str) -> str:
    return f"FILMLET_{name.upper()}"


def _parse_text(name: str, variable: str, text: str, kind: type) -> Any:
    """Return the value of a variable's text, checked under the variable's name.

    Raises InvalidSetting.
    """
    if len(text) > MAX_CHARS:
        raise InvalidSetting(f"{variable} has {len(text)} characters; at most {MAX_CHARS}.")
    try:
        value = kind(text)
    except ValueError:
        raise InvalidSetting(_number_sentence(name, variable, text, kind)) from None
    check_setting(name, value, variable)
    if name in FOLDERS:
        _check_folder(variable, Path(text.removeprefix("file://")))
    return value


def check_setting(name: str, value: Any, variable: str) -> None:
    """Check one setting. variable: that the sentence names. Raises InvalidSetting."""
    if name in RANGES:
        lowest, highest = RANGES[name]
        if not lowest <= value <= highest:  # nor is nan
            raise InvalidSetting(_number_sentence(name, variable, value, type(value)))
    if value not in CHOICES.get(name, (value,)):
        choices = ", ".join(CHOICES[name])
        raise InvalidSetting(f"{variable} must be one of {choices}, not {abbreviate(value)}.")
    if name in FORMS:
        fits, form = FORMS[name]
        if not fits(value):
            shown = "" if name in SECRETS else f", not {abbreviate(value)}"
            raise InvalidSetting(f"{variable} must be {form}{shown}.")


def _number_sentence(name: str, variable: str, value: object, kind: type) -> str:
    lowest, highest = RANGES[name]
    noun = "a whole number" if kind is int else "a number"
    bounds = f"{lowest:g} or {highest:g}" if highest == 1 else f"from {lowest:g} to {highest:g}"
    return f"{variable} must be {noun}, {bounds}, not {abbreviate(value)}."


def _check_folder(variable: str, folder: Path) -> None:
    """Refuse what is no folder and cannot become one. Raises InvalidSetting."""
    if "://" in str(folder):
        return
    try:
        if not folder.is_dir() and folder.lstat():
            raise InvalidSetting(f"{variable} must be a folder; {abbreviate(str(folder))} is none.")
    except FileNotFoundError:
        return
    except OSError as error:
        raise InvalidSetting(f"{variable} cannot be a folder: {error.strerror}.") from error


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
        if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
            raise InvalidSetting(
                "GRADIO_SERVER_PORT must be a whole number, from 1 to 65535, "
                f"not {abbreviate(port)}."
            )
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
