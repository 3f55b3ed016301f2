"""Which of torch's attention kernels a GPU is quickest with: measured once for each shape."""

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

KERNELS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
CALLS = 3  # of which the quickest counts
MAX_RELATIVE_ERROR = (
    2e-2  # relative error against the exact one in float32 that is no error of the kernel
)


@dataclass(frozen=True)
class AttentionShape:
    """Of attention of a clip to itself."""

    heads: int
    head: int  # channels
    tokens: int


@dataclass(eq=False)
class AttentionBackendSelector:
    """The kernels that were found, kept in a file: a seed is to give the same bytes tomorrow."""

    file: Path
    device: torch.device
    dtype: torch.dtype
    fastest: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def fastest_backend(self, size: AttentionShape) -> Iterator[None]:
        """Attention by the quickest kernel where it can compute it, else by those after it."""
        first = SDPBackend.__members__[self._cache_name(size)]
        others = [kernel for kernel in KERNELS if kernel != first]
        with sdpa_kernel([first, *others], set_priority=True):
            yield

    def _cache_name(self, size: AttentionShape) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        key = f"{name}, torch {torch.__version__}, {self.dtype}, {size}"
        if key not in self.fastest:
            self.fastest = self._load()
        if key not in self.fastest:
            times = benchmark_backends(size, self.device, self.dtype)
            self.fastest[key] = min(times, key=times.__getitem__).name
            self._save()
        return self.fastest[key]

    def _load(self) -> dict[str, str]:
        try:
            table: dict[str, str] = json.loads(self.file.read_text())
            return {key: name for key, name in table.items() if name in SDPBackend.__members__}
        except (OSError, ValueError, AttributeError, TypeError):  # there is none, or it is damaged
            return {}

    def _save(self) -> None:
        """So that others find it; a disk that is full costs the next process the measurement."""
        part = self.file.with_suffix(".part")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self.fastest, indent=1, sort_keys=True))
            part.replace(self.file)
        except OSError:
            part.unlink(missing_ok=True)


def benchmark_backends(
    size: AttentionShape, device: torch.device, dtype: torch.dtype
) -> dict[SDPBackend, float]:
    """Seconds of each kernel that computes the size, and rightly."""
    draw = torch.Generator().manual_seed(0)
    shape = (1, size.heads, size.tokens, size.head)
    inputs = [torch.randn(shape, generator=draw).to(device, dtype) for _ in range(3)]
    few = [tensor[:, :1] for tensor in inputs]  # heads do not know each other
    exact = _attention([tensor.float() for tensor in few])
    times: dict[SDPBackend, float] = {}
    for kernel in KERNELS:
        if kernel is SDPBackend.MATH and times:
            break  # the plain one takes memory with the square of the tokens
        with sdpa_kernel(kernel), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they say why one cannot, as the error does
            try:
                output = _attention(inputs)
                took = min(_time_call(inputs) for _ in range(CALLS))
            except torch.OutOfMemoryError:  # says nothing of the kernel, and would be kept
                raise
            except RuntimeError:  # it does not compute this here
                continue
        if _relative_error(output[:, :1].float(), exact) < MAX_RELATIVE_ERROR:
            times[kernel] = took
    return times or {SDPBackend.MATH: 0.0}


def _attention(inputs: Sequence[Tensor]) -> Tensor:
    query, key, value = inputs
    return F.scaled_dot_product_attention(query, key, value)


def _time_call(inputs: Sequence[Tensor]) -> float:
    started = time.perf_counter()
    output = _attention(inputs)
    if output.is_cuda:
        torch.cuda.synchronize(output.device)
    return time.perf_counter() - started


def _relative_error(output: Tensor, exact: Tensor) -> float:
    return ((output - exact).norm() / exact.norm()).item()
