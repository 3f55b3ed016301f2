"""From weights to compiled graphs: read back from blobs, or built, compared and kept."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from filmlet.core.model_card import Files, ModelCard
from filmlet.engine.configs import blame_files
from filmlet.engine.openvino.blob_cache import Blob, Store, fingerprint
from filmlet.engine.openvino.ops import Part
from filmlet.engine.openvino.runner import Running, core, machine, options
from filmlet.engine.state_dict import Weights
from filmlet.errors import NotFinite

FORMAT = 15  # of the graphs; another number makes them anew
EXACT = "float32"
FROM = {"encoder": "vae", "decoder": "vae"}  # whose weights they are among
Graphs = Callable[[Part, str, bool], Iterable[ov.Model]]  # of weights, a dtype and `Build.is_int8`
Runs = Sequence[Running]
Check = Callable[[Runs, Runs], str | None]  # how far some are from exact ones, if they are too far


@dataclass(frozen=True)
class Build:
    """One component of a checkpoint: `text_encoder`, `encoder`, `transformer` or `decoder`.

    is_int8: its products are in 8 bits, the rest in the dtype.
    """

    name: str
    card: ModelCard
    files: Files
    dtype: str
    cache: Path
    is_int8: bool = False

    @cached_property
    def weights(self) -> Weights:
        component = FROM.get(self.name, self.name)
        return Weights(component, getattr(self.files, component))

    @property
    def store(self) -> Store:
        return Store(self.cache)

    @cached_property
    def key(self) -> str:
        """Under which its graphs are kept."""
        what = self.name, self.dtype, self.is_int8, self.card.decode_timestep
        return fingerprint(self.weights.files, FORMAT, *what, *machine())

    def verdict(self) -> str | None:
        """Why it was found to be no good, if it was."""
        verdict = self.store.load(f"{self.key}-off")
        return None if verdict is None else verdict.blob.tobytes().decode()

    def runs(
        self, count: int, graphs: Graphs, check: Check | None = None
    ) -> Generator[int, None, Runs]:
        """Its graphs, ready to run; yields bytes that were read.

        Raises NotFinite where they fail the check, and for good: the verdict is kept.
        """
        kept = self._kept(count)
        if kept:
            return kept
        table = {}
        for name, array in self.weights.arrays():
            table[name] = array
            yield array.nbytes
        with blame_files(self.weights.place):
            return self._compiled(table, graphs, check)

    def _compiled(
        self, table: Mapping[str, NDArray[np.float32]], graphs: Graphs, check: Check | None
    ) -> Runs:
        """Its graphs, compiled, compared with exact ones, and kept."""
        compiled = compile_all(graphs(Part(table), self.dtype, self.is_int8), self.dtype)
        blobs = [_exported(model) for model in compiled]
        runs = [self._import(blob) for blob in blobs]
        if check and (self.is_int8 or self.dtype != EXACT):
            exact = list(
                map(Running.at_hand, compile_all(graphs(Part(table), EXACT, False), EXACT))
            )
            if found := check(runs, exact):
                kind = "int8" if self.is_int8 else self.dtype
                verdict = f"{kind} is {found} of OpenVINO here."
                self.store.save(f"{self.key}-off", verdict.encode())
                raise NotFinite(verdict)
        for i, blob in enumerate(blobs):
            self.store.save(f"{self.key}-{i}", blob.tobytes())
        return runs

    def _kept(self, count: int) -> Runs:
        """All its graphs, or none."""
        found = [self.store.load(f"{self.key}-{i}") for i in range(count)]
        there = [kept for kept in found if kept]
        try:
            runs = [self._import(kept.blob, kept.put_away) for kept in there]
            return runs if len(runs) == count else []
        except RuntimeError:  # of another build of OpenVINO
            return []

    def _import(self, blob: Blob, put_away: Callable[[], None] | None = None) -> Running:
        """Also what was just compiled, so that every process runs the very same."""
        tensor = ov.Tensor(blob, shared_memory=True)  # the graph's weights stay there
        read = partial(core().import_model, tensor, "CPU", options(self.dtype))
        return Running(read, put_away)


def compile_all(graphs: Iterable[ov.Model], dtype: str) -> Iterable[ov.CompiledModel]:
    return (core().compile_model(graph, "CPU", options(dtype)) for graph in graphs)


def _exported(model: ov.CompiledModel) -> Blob:
    blob = model.export_model()
    return np.frombuffer(bytearray(blob if isinstance(blob, bytes) else blob.getvalue()), np.uint8)
