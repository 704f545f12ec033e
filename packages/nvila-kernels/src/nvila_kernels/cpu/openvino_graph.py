"""Graphs of OpenVINO that are built here and run on torch's tensors.

Weights go through files: the runtime packs them when a graph first runs and never lets go of what it has read, so what
lay in memory would stay there twice.

All graphs share one pool of threads. A request runs on the thread that asks, which then takes part: handing it to
another one costs a token a third of its time.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from threading import Lock
from types import ModuleType
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from nvila_kernels.cpu.large_pages import in_large_pages
from nvila_kernels.cpu.mapped import MappedTensors
from nvila_kernels.cpu.memory import together

OLDEST = (2026, 4)
"""The oldest release that was tried."""
REMEDY = "pip install 'nvila-kernels[cpu]'"
KINDS = {torch.float32: "f32", torch.int32: "i32", torch.int64: "i64", torch.uint8: "u8"}
"""OpenVINO's names for element types, which its operators take too."""
TELEMETRY = "openvino_telemetry"
SMALL = 2**12
"""Bytes of a constant up to which it stays in memory."""
BLOCK = 32
"""Activations that share a scale where they become int8, at most. With more prompts are faster and tokens slower."""

Sizes: TypeAlias = Sequence[int]
"""A shape; -1 for a size that is known when the graph runs."""


def missing() -> str | None:
    """Why graphs cannot run here; None if they can."""
    try:
        release = version("openvino")
    except PackageNotFoundError:
        return f"openvino not installed: {REMEDY}"
    if tuple(int(part) for part in release.split(".")[:2]) < OLDEST:
        return f"openvino {release} is older than {'.'.join(map(str, OLDEST))}: {REMEDY}"
    return None


def runtime() -> Any:
    """OpenVINO, silent: as its package comes, every import is told to its makers over the network."""
    if "openvino" in sys.modules or TELEMETRY in sys.modules:
        return importlib.import_module("openvino")
    sys.modules[TELEMETRY] = cast(ModuleType, None)  # cannot be imported, and OpenVINO goes on without it
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[TELEMETRY]


def operators() -> Any:
    """OpenVINO's operators, a function each."""
    return runtime().opset13


@cache
def core() -> Any:
    """Where graphs are compiled: one for the whole process, which never lets go of it.

    Each gives the thread that makes it a stack for signal handlers, and takes it back when it goes. Of two that go in
    the order in which they came the second puts the first one's stack back, which is gone, and the next signal that
    Python handles, such as the end of a child, kills the process without a word (release 2026.4.1).
    """
    return runtime().Core()


class Request:
    """A graph with a state of its own. One thread at a time.

    Args:
        request: of OpenVINO.
        graph: whose request it is; its constants must not go before this.
    """

    def __init__(self, request: Any, graph: "ReadyGraph") -> None:
        self.request = request
        self.graph = graph
        self.places: dict[str, tuple[int, torch.Size]] = {}

    def __call__(self, inputs: Sequence[Tensor], out: Tensor) -> None:
        """Tensors in the order in which the graph was told of them, contiguous and on the CPU."""
        for index, tensor in enumerate(inputs):
            self.bind(self.request.set_input_tensor, index, f"input {index}", tensor)
        self.bind(self.request.set_output_tensor, 0, "output", out)
        self.request.infer(share_outputs=True)

    def bind(self, tell: Callable[[int, Any], None], index: int, name: str, tensor: Tensor) -> None:
        """Tell the runtime where a tensor is, unless it is where it was."""
        place = tensor.data_ptr(), tensor.shape
        if self.places.get(name) != place:
            tell(index, runtime().Tensor(tensor.detach().numpy(), shared_memory=True))
            self.places[name] = place

    def keep(self, count: int, axis: int) -> None:
        """Forget the states behind the first ``count`` places of an axis."""
        if not count:
            self.request.reset_state()
            return
        openvino = runtime()
        for state in self.request.query_state():
            kept = torch.as_tensor(state.state.data).narrow(axis, 0, count)
            state.state = openvino.Tensor(kept.contiguous().numpy(), shared_memory=False)


class ReadyGraph:
    """A graph that runs.

    Args:
        compiled: by OpenVINO.
        tensors: its constants, which the runtime may read again.
    """

    def __init__(self, compiled: Any, tensors: MappedTensors) -> None:
        self.compiled = compiled
        self.tensors = tensors

    def request(self) -> Request:
        """For one thread at a time."""
        return Request(self.compiled.create_infer_request(), self)

    def runner(self) -> Callable[[Sequence[Tensor], Tensor], None]:
        """A graph without states, for any number of threads: they take turns."""
        request, lock = self.request(), Lock()

        def run(inputs: Sequence[Tensor], out: Tensor) -> None:
            with lock:
                request(inputs, out)

        return run


class Graph:
    """A graph in the making. Large constants go to files.

    Attributes:
        block: activations that share a scale where they become int8; no more than weights may.
    """

    def __init__(self) -> None:
        self.block = BLOCK
        self.inputs: list[Any] = []
        self.stores: list[Any] = []
        self.tensors = MappedTensors()

    def read(self, name: str, sizes: Sizes, dtype: torch.dtype = torch.float32) -> Any:
        """An input; returns its node."""
        openvino = runtime()
        kind = getattr(openvino.Type, KINDS[dtype])
        self.inputs.append(operators().parameter(list(sizes), kind, name=name))
        return self.inputs[-1]

    def hold(self, tensor: Tensor) -> Any:
        """A constant of the graph. Raises: OSError if the disk has no room for it."""
        if tensor.nbytes <= SMALL:
            return operators().constant(tensor.detach().contiguous().numpy())
        return self.kept(tensor.detach(), tensor.shape, KINDS[tensor.dtype])

    def hold_int4(self, pairs: Tensor, sizes: Sizes) -> Any:
        """A constant of 4-bit values without sign, two in a byte, the first in its lower half.

        Raises: OSError if the disk has no room for it.
        """
        return self.kept(pairs, sizes, "u4")

    def kept(self, tensor: Tensor, sizes: Sizes, kind: str) -> Any:
        """A constant in a file."""
        openvino = runtime()
        kept = self.tensors.keep(tensor).numpy()
        return operators().constant(openvino.Tensor(kept, openvino.Shape(list(sizes)), getattr(openvino.Type, kind)))

    def recall(self, name: str, first: Any, sizes: Sizes) -> Any:
        """What was stored by this name in the last run of a request, float32; ``first`` in the first run."""
        openvino = runtime()
        return operators().read_value(first, name, openvino.Type.f32, list(sizes))

    def store(self, name: str, value: Any) -> None:
        """Keep a value for the next run."""
        self.stores.append(operators().assign(value, name))

    def ready(self, result: Any, first: Sequence[Tensor], out: Tensor, *, int8_activations: bool) -> ReadyGraph:
        """The graph with this node as its result, once.

        Args:
            result: a node.
            first, out: what a first run reads, by the order of inputs, and writes; the runtime packs weights there.
            int8_activations: whether products with 4-bit weights may round activations, where the processor has an
                instruction for sums of such products.
        """
        block = self.block if int8_activations else 0
        model = runtime().Model([operators().result(result)], self.stores, self.inputs)
        self.inputs, self.stores = [], []
        self.tensors.close()
        # memory is bound to a node block by block, which parts what is not in the heap
        with in_large_pages(), self.tensors.unread_meanwhile(), together():
            made = ReadyGraph(core().compile_model(model, "CPU", settings(block)), self.tensors)
            made.request()(first, out)
        return made


def settings(block: int) -> Mapping[str, Any]:
    """Of a compiled graph: torch's number of threads, and nothing in lower precision than it is asked to be.

    Args:
        block: activations that share a scale as int8; 0 if they must not become that.
    """
    return {
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f16",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(block),
    }
