"""Graphs of onnxruntime that are built here and run on torch's tensors.

Weights go through a file of their own, where the runtime finds them: inside a graph they would be copied four times.

Every graph has its own threads, as many as torch has when it is made. Between two operators of a run they spin, since
waking one costs as much as a small product; when the run is done they sleep: the pool that graphs could share would go
on spinning on cores that torch needs next, and nothing turns that off from Python.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor

from nvila_kernels.cpu.large_pages import in_large_pages
from nvila_kernels.cpu.memory import unread

OLDEST = (1, 32)
"""The release from which ``GroupQueryAttention`` takes batches of new positions behind old ones (``query_seqlens``)."""
REMEDY = "pip install 'nvila-kernels[cpu]'"
OPSET = 21
IR_VERSION = 10
CONTRIBUTED = "com.microsoft"
"""The domain of onnxruntime's own operators."""
KINDS = {torch.float32: 1, torch.int32: 6, torch.int64: 7}
"""ONNX's numbers for element types."""
WEIGHTS, SMALL = "weights.bin", 1024
"""The file of constants beside a graph, and the bytes up to which they stand in the graph itself."""

Sizes: TypeAlias = Sequence[int | str]
"""A shape; a size by name is known when the graph runs."""


def missing() -> str | None:
    """Why graphs cannot run here; None if they can."""
    absent = [name for name in ("onnxruntime", "onnx") if importlib.util.find_spec(name) is None]
    if absent:
        return f"{' and '.join(absent)} not installed: {REMEDY}"
    version: str = importlib.import_module("onnxruntime").__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"onnxruntime {version} is older than {'.'.join(map(str, OLDEST))}: {REMEDY}"
    return None


class Bound:
    """A graph and the tensors that it reads and writes. One thread at a time.

    Args:
        session: of onnxruntime.
    """

    def __init__(self, session: Any) -> None:
        self.session = session
        self.binding = session.io_binding()
        self.places: dict[str, tuple[int, torch.Size, torch.dtype]] = {}

    def tell(self, inputs: Mapping[str, Tensor], results: Mapping[str, Tensor]) -> None:
        """Tensors by the names of edges, contiguous and on the CPU; those that were told before stay.

        They must live as long as the graph runs on them. A result may lie where an input does.
        """
        for name, tensor in inputs.items():
            self.bind(self.binding.bind_input, name, tensor)
        for name, tensor in results.items():
            self.bind(self.binding.bind_output, name, tensor)

    def bind(self, tell: Callable[..., None], name: str, tensor: Tensor) -> None:
        """Tell the runtime where a tensor is, unless it is where it was: telling costs as much as an operator."""
        place = tensor.data_ptr(), tensor.shape, tensor.dtype
        if self.places.get(name) != place:
            tell(name, "cpu", 0, KINDS[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())
            self.places[name] = place

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)


class ReadyGraph:
    """A graph that runs. It reads and writes the memory of the tensors that it is given.

    Args:
        session: of onnxruntime.
    """

    def __init__(self, session: Any) -> None:
        self.session = session
        self.shared = self.bound()
        self.lock = Lock()

    def bound(self) -> Bound:
        """The graph on tensors of one's own."""
        return Bound(self.session)

    def __call__(self, inputs: Mapping[str, Tensor], results: Mapping[str, Tensor]) -> None:
        """Tensors by the names of edges, contiguous and on the CPU. A result may lie where an input does."""
        with self.lock:
            self.shared.tell(inputs, results)
            self.shared.run()


class Graph:
    """A graph in the making. Edges go by their names; constants go to a file, which lasts as long as ``with``."""

    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.folder = TemporaryDirectory(ignore_cleanup_errors=True)
        self.written = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()

    def read(self, name: str, sizes: Sizes, dtype: torch.dtype = torch.float32) -> str:
        """An input; returns its edge, which has its name."""
        self.inputs.append(edge(name, sizes, dtype))
        return name

    def hold(self, tensor: Tensor) -> str:
        """A constant of the graph."""
        onnx: Any = importlib.import_module("onnx")
        name = f"held{len(self.tensors)}"
        array = tensor.detach().contiguous().numpy()
        if array.nbytes <= SMALL:
            self.tensors.append(onnx.numpy_helper.from_array(array, name))
            return name
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        place = {"location": WEIGHTS, "offset": self.written, "length": array.nbytes}
        held = onnx.TensorProto(name=name, data_type=kind, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL)
        for key, value in place.items():
            held.external_data.add(key=key, value=str(value))
        with (Path(self.folder.name) / WEIGHTS).open("ab") as file:
            file.write(array.data)
        self.written += array.nbytes
        self.tensors.append(held)
        return name

    def add(self, kind: str, *edges: str, domain: str = "", **attributes: Any) -> str:
        """An operator of one result; returns its edge. An edge without a name is an input that is left out."""
        return self.add_several(kind, *edges, results=1, domain=domain, **attributes)[0]

    def add_several(self, kind: str, *edges: str, results: int, domain: str = "", **attributes: Any) -> list[str]:
        """An operator of several results."""
        onnx: Any = importlib.import_module("onnx")
        made = [f"edge{len(self.nodes)}.{index}" for index in range(results)]
        self.nodes.append(onnx.helper.make_node(kind, edges, made, domain=domain, **attributes))
        return made

    def ready(self, results: Mapping[str, Sizes]) -> ReadyGraph:
        """The graph with these edges as its results, once."""
        onnx: Any = importlib.import_module("onnx")
        given = [edge(name, sizes) for name, sizes in results.items()]
        graph = onnx.helper.make_graph(self.nodes, "graph", self.inputs, given, self.tensors)
        domains = [onnx.helper.make_opsetid(name, number) for name, number in (("", OPSET), (CONTRIBUTED, 1))]
        model = onnx.helper.make_model(graph, opset_imports=domains)
        model.ir_version = IR_VERSION
        path = Path(self.folder.name) / "graph.onnx"
        path.write_bytes(model.SerializeToString())
        with in_large_pages():
            made = session(path)
        unread(path.with_name(WEIGHTS))  # the runtime keeps scales mapped that it has packed
        return ReadyGraph(made)


def edge(name: str, sizes: Sizes, dtype: torch.dtype = torch.float32) -> Any:
    onnx: Any = importlib.import_module("onnx")
    return onnx.helper.make_tensor_value_info(name, KINDS[dtype], sizes)


def session(graph: Path) -> Any:
    """A graph ready to run."""
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return runtime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
