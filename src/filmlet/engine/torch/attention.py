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
OFF = 2e-2  # relative error against the exact one in float32 that is no error of the kernel


@dataclass(frozen=True)
class Size:
    """Of attention of a clip to itself."""

    heads: int
    head: int  # channels
    tokens: int


@dataclass(eq=False)
class Attending:
    """The kernels that were found, kept in a file: a seed is to give the same bytes tomorrow."""

    file: Path
    device: torch.device
    dtype: torch.dtype
    found: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def quickest(self, size: Size) -> Iterator[None]:
        """Attention by the quickest kernel where it can compute it, else by those after it."""
        first = SDPBackend.__members__[self._name(size)]
        others = [kernel for kernel in KERNELS if kernel != first]
        with sdpa_kernel([first, *others], set_priority=True):
            yield

    def _name(self, size: Size) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        key = f"{name}, torch {torch.__version__}, {self.dtype}, {size}"
        if key not in self.found:
            self.found = self._kept()
        if key not in self.found:
            times = measured(size, self.device, self.dtype)
            self.found[key] = min(times, key=times.__getitem__).name
            self._keep()
        return self.found[key]

    def _kept(self) -> dict[str, str]:
        try:
            table: dict[str, str] = json.loads(self.file.read_text())
            return {key: name for key, name in table.items() if name in SDPBackend.__members__}
        except (OSError, ValueError, AttributeError, TypeError):  # there is none, or it is damaged
            return {}

    def _keep(self) -> None:
        """So that others find it; a disk that is full costs the next process the measurement."""
        part = self.file.with_suffix(".part")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self.found, indent=1, sort_keys=True))
            part.replace(self.file)
        except OSError:
            part.unlink(missing_ok=True)


def measured(size: Size, device: torch.device, dtype: torch.dtype) -> dict[SDPBackend, float]:
    """Seconds of each kernel that computes the size, and rightly."""
    draw = torch.Generator().manual_seed(0)
    shape = (1, size.heads, size.tokens, size.head)
    given = [torch.randn(shape, generator=draw).to(device, dtype) for _ in range(3)]
    few = [one[:, :1] for one in given]  # heads do not know each other
    exact = _attended([one.float() for one in few])
    times: dict[SDPBackend, float] = {}
    for kernel in KERNELS:
        if kernel is SDPBackend.MATH and times:
            break  # the plain one takes memory with the square of the tokens
        with sdpa_kernel(kernel), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they say why one cannot, as the error does
            try:
                made = _attended(given)
                took = min(_seconds(given) for _ in range(CALLS))
            except torch.OutOfMemoryError:  # says nothing of the kernel, and would be kept
                raise
            except RuntimeError:  # it does not compute this here
                continue
        if _off(made[:, :1].float(), exact) < OFF:
            times[kernel] = took
    return times or {SDPBackend.MATH: 0.0}


def _attended(given: Sequence[Tensor]) -> Tensor:
    query, key, value = given
    return F.scaled_dot_product_attention(query, key, value)


def _seconds(given: Sequence[Tensor]) -> float:
    started = time.perf_counter()
    made = _attended(given)
    if made.is_cuda:
        torch.cuda.synchronize(made.device)
    return time.perf_counter() - started


def _off(made: Tensor, exact: Tensor) -> float:
    return ((made - exact).norm() / exact.norm()).item()
