"""Graphs of onnxruntime that are built here and run on torch's tensors.

Weights go through a file of their own, where the runtime finds them: inside a graph they would be copied four times.

Every graph has its own threads, as many as torch has when it is made, which sleep when it is done: the pool that graphs
could share keeps spinning on cores that torch needs for the next operation, and nothing turns that off from Python.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from nvila_kernels.cpu.kernel import GraphRun

OPSET = 21
IR_VERSION = 10
CONTRIBUTED = "com.microsoft"
"""The domain of onnxruntime's own operators."""
FLOAT = 1
WEIGHTS, SMALL = "weights.bin", 1024
"""The file of constants beside a graph, and the bytes up to which they stand in the graph itself."""


def missing() -> str | None:
    """Why graphs cannot run here; None if they can."""
    absent = [name for name in ("onnxruntime", "onnx") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed: pip install 'nvila-kernels[cpu]'" if absent else None


class Graph:
    """A graph in the making. Edges are float32 ``[rows, width]`` and go by their names.

    Args:
        inputs: names and widths, in the order in which a run takes them.
    """

    def __init__(self, inputs: Mapping[str, int]) -> None:
        self.inputs = dict(inputs)
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.weights: list[Any] = []
        self.written = 0

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
        self.weights.append(array)
        self.written += array.nbytes
        self.tensors.append(held)
        return name

    def add(self, kind: str, *edges: str, domain: str = "", **attributes: Any) -> str:
        """An operator of one result; returns its edge."""
        return self.add_several(kind, *edges, results=1, domain=domain, **attributes)[0]

    def add_several(self, kind: str, *edges: str, results: int, domain: str = "", **attributes: Any) -> list[str]:
        """An operator of several results."""
        onnx: Any = importlib.import_module("onnx")
        made = [f"edge{len(self.nodes)}.{index}" for index in range(results)]
        self.nodes.append(onnx.helper.make_node(kind, edges, made, domain=domain, **attributes))
        return made

    def run(self, result: str, width: int) -> GraphRun:
        """The graph made ready, once: contiguous float32 inputs in order -> ``[rows, width]`` of one edge."""
        onnx: Any = importlib.import_module("onnx")
        widths = [*self.inputs.items(), (result, width)]
        edges = [onnx.helper.make_tensor_value_info(name, FLOAT, ["rows", size]) for name, size in widths]
        graph = onnx.helper.make_graph(self.nodes, "graph", edges[:-1], edges[-1:], self.tensors)
        domains = [onnx.helper.make_opsetid(name, number) for name, number in (("", OPSET), (CONTRIBUTED, 1))]
        model = onnx.helper.make_model(graph, opset_imports=domains)
        model.ir_version = IR_VERSION
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            with (Path(folder) / WEIGHTS).open("wb") as file:
                while self.weights:
                    file.write(self.weights.pop(0).data)
            path = Path(folder) / "graph.onnx"
            path.write_bytes(model.SerializeToString())
            ready = session(path)
        names = list(self.inputs)

        def run(*inputs: Tensor) -> Tensor:
            given = {name: tensor.detach().numpy() for name, tensor in zip(names, inputs, strict=True)}
            return torch.from_numpy(ready.run(None, given)[0])  # pyright: ignore[reportUnknownMemberType]

        return run


def session(graph: Path) -> Any:
    """A graph ready to run."""
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return runtime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
