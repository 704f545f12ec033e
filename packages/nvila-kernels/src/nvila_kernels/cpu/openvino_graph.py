"""Graphs of OpenVINO that are built here and run on torch's tensors.

Weights go through a file, which the runtime maps: it packs them when a graph first runs and never lets go of what it
has read, so what lay in memory would stay there twice. The file is in the user's folder, since the system's for
temporary files may be memory; it has no name any more once a graph is ready, and no room on the disk at the program's
end.

All graphs share one pool of threads. A request runs on the thread that asks, which then takes part: handing it to
another one costs a token a third of its time.
"""

import importlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Self, TypeAlias, cast

import torch
from torch import Tensor

from nvila_kernels.cpu.folder import FOLDER, user_folder
from nvila_kernels.cpu.memory import give_back, unread_meanwhile

OLDEST = (2026, 4)
"""The oldest release that was tried."""
REMEDY = "pip install 'nvila-kernels[cpu]'"
KINDS = {torch.float32: "f32", torch.int32: "i32", torch.int64: "i64"}
"""OpenVINO's names for element types, which its operators take too."""
TELEMETRY = "openvino_telemetry"
FILE = "graph.xml"
BLOCK = 32
"""Activations that share a scale where they become int8. With 128 a prompt takes three quarters of the time, and a
token a tenth more."""

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

    The first of a thread gives its signal handlers a stack, and takes it back when it goes. Of two that go in the order
    in which they came the second puts back the first one's stack, which is gone, and the next signal that Python
    handles, such as the end of a child, kills the process without a word (release 2026.4.1).
    """
    return runtime().Core()


class Request:
    """A graph with a state of its own. One thread at a time.

    Args:
        request: of OpenVINO.
    """

    def __init__(self, request: Any) -> None:
        self.request = request

    def __call__(self, inputs: Sequence[Tensor], out: Tensor) -> None:
        """Tensors in the order in which the graph was told of them, contiguous and on the CPU."""
        for index, tensor in enumerate(inputs):
            self.request.set_input_tensor(index, shared(tensor))
        self.request.set_output_tensor(0, shared(out))
        self.request.infer(share_outputs=True)

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
    """

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled

    def request(self) -> Request:
        return Request(self.compiled.create_infer_request())


class Graph:
    """A graph in the making, and the folder of its file."""

    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self.stores: list[Any] = []
        self.arrays: list[Any] = []
        user_folder().mkdir(parents=True, exist_ok=True)
        self.folder = TemporaryDirectory(prefix="graph", dir=user_folder(), ignore_cleanup_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()

    def read(self, name: str, sizes: Sizes, dtype: torch.dtype = torch.float32) -> Any:
        """An input; returns its node."""
        openvino = runtime()
        kind = getattr(openvino.Type, KINDS[dtype])
        self.inputs.append(operators().parameter(list(sizes), kind, name=name))
        return self.inputs[-1]

    def hold(self, tensor: Tensor) -> Any:
        """A constant of the graph."""
        return operators().constant(tensor.detach().contiguous().numpy())

    def hold_int4(self, pairs: Tensor, sizes: Sizes) -> Any:
        """A constant of 4-bit values without sign, two in a byte, the first in its lower half."""
        openvino = runtime()
        self.arrays.append(pairs.contiguous().numpy())  # the tensor is a view of it
        return operators().constant(openvino.Tensor(self.arrays[-1], openvino.Shape(list(sizes)), openvino.Type.u4))

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

        Raises: OSError if the disk has no room for the weights.
        """
        openvino = runtime()
        path = Path(self.folder.name) / FILE
        needed, free = sum(array.nbytes for array in self.arrays), shutil.disk_usage(path.parent).free
        if needed > free:
            raise OSError(
                f"weights of {needed / 2**20:.0f} MiB pass through {path.parent.parent}, where {free / 2**20:.0f} MiB "
                f"are free: make room, or let {FOLDER} name another folder"
            )
        openvino.save_model(openvino.Model([operators().result(result)], self.stores, self.inputs), path, False)
        self.inputs, self.stores = [], []
        self.arrays.clear()
        give_back()
        read = core().read_model(path)
        made = ReadyGraph(core().compile_model(read, "CPU", settings(int8_activations)))
        with unread_meanwhile(path.with_suffix(".bin")):
            made.request()(first, out)
        del read  # it held the file in its place until now: what came there instead would have lost its pages
        return made


def settings(int8_activations: bool) -> Mapping[str, Any]:
    """Of a compiled graph: torch's number of threads, and nothing in lower precision than it is asked to be."""
    return {
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f16",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(BLOCK if int8_activations else 0),
    }


def shared(tensor: Tensor) -> Any:
    """The memory of a tensor, as one of OpenVINO's."""
    openvino = runtime()
    return openvino.Tensor(tensor.detach().numpy(), shared_memory=True)
