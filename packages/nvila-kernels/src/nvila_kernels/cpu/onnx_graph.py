"""onnxruntime's ``MatMulNBits``: a graph of one node for each weight, which the runtime repacks for its processor.

With accuracy level 4 activations become int8 in blocks of the group's size; with level 1 they stay float32. Every
graph has its own threads, as many as torch has when it is made, which sleep between its products: the pool that graphs
could share keeps spinning on cores that torch needs for the next operation, and nothing turns that off from Python.
"""

import importlib
import importlib.util
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from nvila_kernels.cpu.kernel import Codes, Kernel, Run
from nvila_kernels.quantization import Int4Codes

SMALLEST_BLOCK = 16
OPSET = 21
IR_VERSION = 10


def missing() -> str | None:
    absent = [name for name in ("onnxruntime", "onnx") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed: pip install 'nvila-kernels[cpu]'" if absent else None


def session(graph: bytes) -> Any:
    """A graph ready to run, which keeps nothing of ``graph`` but its own packing.

    It is read from a file, because a session that is made of bytes holds on to them.
    """
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with TemporaryDirectory() as folder:
        file = Path(folder) / "linear.onnx"
        file.write_bytes(graph)
        return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def graph_of(codes: Int4Codes, accuracy: int) -> bytes:
    """``y = x @ weight.T`` as an ONNX model. Raises: ValueError for groups that are no power of two."""
    onnx: Any = importlib.import_module("onnx")
    n, k, group = codes.out_features, codes.in_features, codes.group_size
    if group < SMALLEST_BLOCK or group & (group - 1):
        raise ValueError(f"groups of {group}; it takes powers of two from {SMALLEST_BLOCK}")
    groups = -(-k // group)
    values = torch.nn.functional.pad(codes.codes, (0, groups * group - k))
    zero = torch.nn.functional.pad(codes.zero, (0, groups % 2))
    tensors = {
        "weight": pairs(values).reshape(n, groups, group // 2),
        "scale": codes.scale.float().flatten(),
        "zero": pairs(zero).flatten(),
    }
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", *tensors], ["y"], domain="com.microsoft",
        K=k, N=n, bits=4, block_size=group, accuracy_level=accuracy,
    )  # fmt: skip
    edges = [onnx.helper.make_tensor_value_info(name, 1, ["rows", width]) for name, width in (("x", k), ("y", n))]
    held = [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in tensors.items()]
    graph = onnx.helper.make_graph([node], "linear", edges[:1], edges[1:], held)
    domains = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=domains)
    model.ir_version = IR_VERSION
    return model.SerializeToString()


def pairs(values: Tensor) -> Tensor:
    """Two 4-bit values a byte, the first in its lower half."""
    return (values[:, 0::2] | values[:, 1::2] << 4).contiguous()


def pack(codes: Codes, accuracy: int) -> Run:
    assert isinstance(codes, Int4Codes)
    ready = session(graph_of(codes, accuracy))
    return lambda x: torch.from_numpy(ready.run(None, {"x": x.detach().numpy()})[0])  # pyright: ignore[reportUnknownMemberType]


def pack_int8(codes: Codes) -> Run:
    return pack(codes, 4)


def pack_float(codes: Codes) -> Run:
    return pack(codes, 1)


def size(n: int, k: int, group: int) -> float:
    """Codes, a float32 scale and sum a group, half a byte of zero point."""
    return n * k * (0.5 + 8.5 / group)


NBITS_INT8 = Kernel(
    name="onnxruntime MatMulNBits int8", bits=4, activations="int8", bytes=size, pack=pack_int8, missing=missing
)
NBITS_FLOAT = Kernel(
    name="onnxruntime MatMulNBits", bits=4, activations="float32", bytes=size, pack=pack_float, missing=missing
)
