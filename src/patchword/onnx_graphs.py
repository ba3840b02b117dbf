"""Models as ONNX files: written through torch, run by onnxruntime without it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from patchword.errors import MissingExtra, ModelError
from patchword.files import allocate

if TYPE_CHECKING:
    from torch import Tensor, nn

OPSET = 17
Kind = Literal["onnx", "int8"]
_IN_INT8 = ["MatMul", "Gemm", "Gather"]
"""Operations whose weights are held in eight bits; what goes into products is rounded to eight bits when it
is there (dynamic quantisation). Convolutions are not among them: one scale for a whole map of a depthwise
network turned the vectors of photographs to a cosine of 0.85."""


def load_runtime() -> Any:
    """Raises MissingExtra where onnxruntime or onnx is not installed."""
    try:
        import onnx  # noqa: F401 - the exporter of torch and the quantisation need it
        import onnxruntime
    except ImportError as error:
        raise MissingExtra(
            f"ONNX needs {error.name}, which is not installed: pip install 'patchword[onnx]'"
        ) from error
    return onnxruntime


class Graph:
    """One ONNX file, ready to run on the processor."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        """`threads` of 0 lets onnxruntime choose. Raises MissingExtra, and ModelError for a file that is no
        graph."""
        runtime = load_runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own kinds, one for each way in which a file can be wrong
            said = " ".join(str(error).split())[:200]
            raise ModelError(f"{path} cannot be run ({said}): export the model anew") from error
        self.inputs = tuple(one.name for one in self._session.get_inputs())
        self.outputs = tuple(one.name for one in self._session.get_outputs())

    def run(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; what is given and no input of the graph is left out."""
        feed = {name: given[name] for name in self.inputs}
        return dict(zip(self.outputs, self._session.run(None, feed), strict=True))


def write_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    free_axes: Mapping[str, Mapping[int, str]],
    path: Path,
) -> None:
    """Write what a module does with the example inputs; `free_axes` names the axes of inputs and outputs that
    may be of any length.

    Raises ModelError for a module with a part that ONNX cannot hold.
    """
    import torch

    try:
        with warnings.catch_warnings(), torch.no_grad():
            # The exporter that needs no further package is called deprecated, and remarks on every constant.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                str(path),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={name: dict(axes) for name, axes in free_axes.items()},
                opset_version=OPSET,
                dynamo=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        said = " ".join(str(error).split())[:300]
        raise ModelError(f"a part of this model cannot be written as ONNX: {said}") from error


def turn_into_int8(path: Path) -> None:
    """Replace an ONNX file by one with weights of eight bits."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole, room = path.with_suffix(".whole"), path.with_suffix(".room")
    path.rename(whole)
    # What the quantisation writes meanwhile is cut short in silence where the disk is full.
    with open(room, "wb") as file:
        allocate(file, 3 * whole.stat().st_size)
    room.unlink()
    with _quiet_log():
        quantize_dynamic(
            whole,
            path,
            op_types_to_quantize=_IN_INT8,
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    whole.unlink()


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Without the advice that the quantisation logs for every file: it is for static quantisation."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def sample_photo() -> Path:
    """A photograph that is there with every installation, on which an export is tried."""
    from matplotlib import get_data_path

    return Path(get_data_path()) / "sample_data" / "grace_hopper.jpg"


def size_of(folder: Path) -> float:
    """MiB of the files of a folder."""
    return sum(path.stat().st_size for path in folder.iterdir()) / 2**20
