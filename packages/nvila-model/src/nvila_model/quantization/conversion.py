"""A quantized copy of a checkpoint by name: what ``nvila quantize`` does, in one call."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nvila_model.checkpoint.hub import locate
from nvila_model.inputs.llava import read_llava
from nvila_model.quantization.blocks import usual_policy
from nvila_model.quantization.rules import read_policy
from nvila_model.quantization.streaming import quantize_checkpoint

if TYPE_CHECKING:
    from nvila_kernels import QuantPolicy

    from nvila_model.inputs.model_inputs import ModelInputs
    from nvila_model.network.vlm import VLM
    from nvila_model.quantization.shards import LayerError


class CalibrationError(ValueError):
    """Calibration data that cannot be used."""


def quantize(
    source: str | Path,
    target: str | Path,
    *,
    llm: Literal["w4a16"] | None = "w4a16",
    vision: Literal["w8a8"] | None = "w8a8",
    group_size: int = 128,
    accumulate: Literal["float32", "float16"] = "float32",
    policy: QuantPolicy | str | Path | None = None,
    calibration: str | Path | None = None,
    samples: int = 64,
    revision: str | None = None,
    offline: bool = False,
    token: str | None = None,
    step: Callable[[int, int], object] | None = None,
) -> list[LayerError]:
    """Write a quantized copy of a checkpoint, block by block; a run that was stopped goes on where it was.

    Args:
        source: ``"nano"``, a folder, or a hub repository, not quantized.
        target: a folder that does not exist yet.
        llm, vision: what becomes of each part; None leaves it as it is.
        group_size: inputs that share a 4-bit scale; 0 for a whole row.
        accumulate: of 4-bit products on a GPU; ``"float16"`` is for float16 activations.
        policy: what becomes of each layer, or the path of its TOML rules, in place of the four above.
        calibration: LLaVA-style JSONL; scales are then chosen by AWQ and SmoothQuant, not rounded to nearest.
        samples: records of it that are used.
        revision, offline, token: of the hub.
        step: called after every tensor or block with the bytes of the source that are done, and all there are.

    Returns: the error of each quantized layer.
    Raises: ValueError if nothing would be quantized, CalibrationError for data that cannot be used, CheckpointError if
        the target exists or the source is quantized already.
    """
    if policy is None and llm is None and vision is None:
        raise ValueError("llm None with vision None leaves nothing to quantize: choose 'w4a16' or 'w8a8'")
    if policy is None:
        policy = usual_policy(llm=llm, vision=vision, group_size=group_size, accumulate=accumulate)
    elif isinstance(policy, str | Path):
        policy = read_policy(Path(policy))
    folder = locate(str(source), revision=revision, offline=offline, token=token)
    records = None if calibration is None else read_records(Path(calibration), samples)

    def calibrate(model: VLM) -> Sequence[ModelInputs]:
        return [record_inputs(model, record, number) for number, record in records or ()]

    return quantize_checkpoint(
        folder, Path(target), policy=policy, calibration=None if records is None else calibrate, step=step
    )


def read_records(file: Path, count: int) -> list[tuple[int, dict[str, Any]]]:
    """The first records of a JSONL file with their row numbers, media paths relative to its folder."""
    records: list[tuple[int, dict[str, Any]]] = []
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CalibrationError(f"{file}, row {number} is not JSON: {error}") from None
        if not isinstance(record, dict) or "conversations" not in record:
            raise CalibrationError(f"{file}, row {number} has no 'conversations': give LLaVA-style records")
        records.append((number, {**record, "folder": file.parent}))
        if len(records) == count:
            break
    if not records:
        raise CalibrationError(f"{file} holds no record: give a few dozen typical conversations")
    return records


def record_inputs(model: VLM, record: dict[str, Any], number: int) -> ModelInputs:
    """One record as the model sees it."""
    try:
        return model.needed_processor().for_training([read_llava(record, folder=record["folder"])])
    except (ValueError, KeyError, TypeError) as error:
        raise CalibrationError(f"row {number} of the calibration data cannot be used: {error}") from None
