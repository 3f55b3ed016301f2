"""Compiled graphs of a component: read back from blobs, or built, compared and kept."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np
import openvino as ov

from filmlet.core.model_card import ComponentFiles, ModelCard
from filmlet.engine.configs import blame_files
from filmlet.engine.openvino.blob_cache import Blob, BlobCache, fingerprint
from filmlet.engine.openvino.ops import GraphOptions, Kernels, ModuleWeights, choose_kernels
from filmlet.engine.openvino.runner import (
    CompiledGraph,
    cache_key_of_cpu,
    compile_options,
    get_core,
)
from filmlet.engine.state_dict import CheckpointWeights
from filmlet.errors import NonFiniteValues

FORMAT = 16  # of the graphs; another number makes them anew
REFERENCE_DTYPE = "float32"
COMPONENT_OF = {"encoder": "vae", "decoder": "vae"}  # whose weights they are among, by this prefix
CompiledGraphs = Sequence[CompiledGraph]


class ComponentGraphs(Protocol):
    """The graphs of one component. count: of graphs."""

    @property
    def count(self) -> int: ...

    def build(self, weights: ModuleWeights, options: GraphOptions) -> Iterable[ov.Model]:
        """Return the graphs, in the order in which they run."""

    def find_fault(self, graphs: CompiledGraphs, exact: CompiledGraphs) -> str | None:
        """Return how far low precision is from plain graphs in float32, if it is too far."""


class GraphPart(Protocol):
    """One graph of a component that is compiled part by part. names: of the weights in it."""

    @property
    def names(self) -> frozenset[str]: ...

    def build_part(self, weights: ModuleWeights, options: GraphOptions) -> ov.Model:
        """Return the graph."""

    def find_part_fault(self, graph: CompiledGraph, exact: CompiledGraph) -> str | None:
        """Return how far it is from a plain graph in float32, if it is too far."""


@dataclass(frozen=True)
class ComponentBuild:
    """One component of a checkpoint: `text_encoder`, `encoder`, `transformer` or `decoder`.

    is_int8: its convolutions, or its blocks' linear layers, are in 8 bits, the rest in the dtype.
    """

    name: str
    card: ModelCard
    files: ComponentFiles
    dtype: str
    cache: Path
    is_int8: bool = False
    kernels: Kernels = field(default_factory=choose_kernels)

    @property
    def options(self) -> GraphOptions:
        return GraphOptions(self.dtype, self.is_int8, self.kernels)

    @cached_property
    def weights(self) -> CheckpointWeights:
        component = COMPONENT_OF.get(self.name, self.name)
        return CheckpointWeights(component, getattr(self.files, component))

    @property
    def store(self) -> BlobCache:
        return BlobCache(self.cache)

    @cached_property
    def cache_key(self) -> str:
        """Under which its graphs are kept."""
        what = self.name, self.options, self.card.decode_timestep
        return fingerprint(self.weights.files, FORMAT, *what, *cache_key_of_cpu())

    def rejection(self) -> str | None:
        """Why it was found to be no good, if it was."""
        verdict = self.store.load(f"{self.cache_key}-off")
        return None if verdict is None else verdict.blob.tobytes().decode()

    def load_or_compile(self, graphs: ComponentGraphs) -> Generator[int, None, CompiledGraphs]:
        """Its graphs, ready to run; yields bytes that were read.

        Raises NonFiniteValues where they fail the check, and for good: the verdict is kept.
        """
        cached = self._load_cached(graphs.count)
        if cached:
            return cached
        weights = yield from self._read(self._names)
        with blame_files(self.weights.path):
            return self._compile(weights, graphs)

    def load_or_compile_parts(
        self, parts: Sequence[GraphPart]
    ) -> Generator[int, None, CompiledGraphs]:
        """As `load_or_compile`, with the weights of one part in memory at a time."""
        graphs = []
        for i, part in enumerate(parts):
            graph = self._load_cached_graph(i)
            graphs.append(graph or (yield from self._compile_part(i, part)))
            yield 0  # whoever waits may stop here
        return graphs

    @property
    def _names(self) -> frozenset[str]:
        prefix = f"{self.name}." if self.name in COMPONENT_OF else ""
        return frozenset(name for name in self.weights.shapes if name.startswith(prefix))

    def _read(self, names: frozenset[str]) -> Generator[int, None, ModuleWeights]:
        table = {}
        for name, array in self.weights.arrays(names):
            table[name] = array
            yield array.nbytes
        return ModuleWeights(table)

    def _compile(self, weights: ModuleWeights, graphs: ComponentGraphs) -> CompiledGraphs:
        """Its graphs, compiled, compared with exact ones, and kept."""
        models = compile_all(graphs.build(weights, self.options), self.dtype)
        if not self.is_int8 and self.dtype == REFERENCE_DTYPE:
            return [self._keep(i, _export_blob(model)) for i, model in enumerate(models)]
        blobs = [_export_blob(model) for model in models]
        self._check([self._import_blob(blob) for blob in blobs], weights, graphs)
        return [self._keep(i, blob) for i, blob in enumerate(blobs)]

    def _compile_part(self, i: int, part: GraphPart) -> Generator[int, None, CompiledGraph]:
        """One graph as `_compile`: read back from the file, whose pages cost no memory."""
        weights = yield from self._read(part.names)
        with blame_files(self.weights.path):
            blob = _export_blob(_compile_graph(part.build_part(weights, self.options), self.dtype))
            graph = self._import_blob(blob)
            exact = _compile_graph(part.build_part(weights, GraphOptions()), REFERENCE_DTYPE)
            if fault := part.find_part_fault(graph, CompiledGraph.from_model(exact)):
                self._reject(fault)
        return self._keep(i, blob)

    def _keep(self, i: int, blob: Blob) -> CompiledGraph:
        """One graph, saved and read back: its weights are then pages of the file."""
        self.store.save(f"{self.cache_key}-{i}", blob.data)
        return self._load_cached_graph(i) or self._import_blob(blob)

    def _check(self, runs: CompiledGraphs, weights: ModuleWeights, graphs: ComponentGraphs) -> None:
        """Raises NonFiniteValues, once the verdict is kept."""
        exact = compile_all(graphs.build(weights, GraphOptions()), REFERENCE_DTYPE)
        fault = graphs.find_fault(runs, [CompiledGraph.from_model(model) for model in exact])
        if fault:
            self._reject(fault)

    def _reject(self, fault: str) -> NoReturn:
        verdict = f"{'int8' if self.is_int8 else self.dtype} is {fault} of OpenVINO here."
        self.store.save(f"{self.cache_key}-off", verdict.encode())
        raise NonFiniteValues(verdict)

    def _load_cached(self, count: int) -> CompiledGraphs:
        """Return all its graphs, or none."""
        blobs = [self.store.load(f"{self.cache_key}-{i}") for i in range(count)]
        present = [blob for blob in blobs if blob]
        try:
            runs = [self._import_blob(blob.blob, blob.release_pages) for blob in present]
            return runs if len(runs) == count else []
        except RuntimeError:  # of another build of OpenVINO
            return []

    def _load_cached_graph(self, i: int) -> CompiledGraph | None:
        """Return one graph, if it is there and can be read; its weights are pages of the file."""
        blob = self.store.load(f"{self.cache_key}-{i}")
        if blob is None:
            return None
        try:
            graph = self._import_blob(blob.blob, blob.release_pages)
        except RuntimeError:  # of another build of OpenVINO
            return None
        blob.release_pages()  # that the checksum has read
        return graph

    def _import_blob(self, blob: Blob, put_away: Callable[[], None] | None = None) -> CompiledGraph:
        """Also what was just compiled, so that every process runs the very same."""
        tensor = ov.Tensor(blob, shared_memory=True)  # the graph's weights stay there
        read = partial(get_core().import_model, tensor, "CPU", compile_options(self.dtype))
        return CompiledGraph(read, put_away)


def compile_all(graphs: Iterable[ov.Model], dtype: str) -> Iterable[ov.CompiledModel]:
    return (_compile_graph(graph, dtype) for graph in graphs)


def _compile_graph(graph: ov.Model, dtype: str) -> ov.CompiledModel:
    return get_core().compile_model(graph, "CPU", compile_options(dtype))


def _export_blob(model: ov.CompiledModel) -> Blob:
    blob = model.export_model()
    return np.frombuffer(bytearray(blob if isinstance(blob, bytes) else blob.getvalue()), np.uint8)
