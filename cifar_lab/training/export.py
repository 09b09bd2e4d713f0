"""A trained network for use without this repository: weights with what has to be known of them, or a program.

`.safetensors` holds the weights, and the metadata in its header. `.onnx` and `.pt2` (`torch.export`) hold the whole
computation, normalization included: bytes from 0 to 255 go in, (N, 32, 32, 3) uint8 with the channels red, green, blue
last, as `numpy.asarray` gives a picture of Pillow, and logits (N, classes) float32 come out. All are written in fp32.
"""

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifar_lab.measures.evaluation import predictor
from cifar_lab.run_folder.files import write_whole
from cifar_lab.run_folder.inputs import Inputs
from cifar_lab.training.augment import network_input
from cifar_lab.training.loader import inputs_of


class Missing(Exception):
    """A package that a kind of file needs is not installed; the text says how to install it."""


class OfBytes(nn.Module):
    """A network with its normalization."""

    def __init__(self, network: nn.Module, inputs: Inputs, flip: bool = False) -> None:
        """flip: whether a prediction is the mean of those of an image and of its mirror image."""
        super().__init__()
        self.network = network
        self.normalization = inputs.normalization
        self.flip = flip

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 32, 32, 3) uint8 to logits (N, classes)."""
        return predictor(self.network, self.flip)(network_input(images, self.normalization))


def _safetensors(network: nn.Module, inputs: Inputs, about: Mapping[str, str]) -> bytes:
    from safetensors.torch import save

    return save(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in network.state_dict().items()},
        dict(about),
    )


def _program(network: nn.Module, inputs: Inputs, about: Mapping[str, str]) -> torch.export.ExportedProgram:
    channels, height, width = inputs.shape
    example = torch.zeros(2, height, width, channels, dtype=torch.uint8)  # of a batch of any size
    flip = json.loads(about["settings"]).get("test_time_flip", False)  # runs from before there was one have none
    many = {0: torch.export.Dim("images", min=1)}
    return torch.export.export(OfBytes(network, inputs, flip).eval(), (example,), dynamic_shapes=(many,))


def _pt2(network: nn.Module, inputs: Inputs, about: Mapping[str, str]) -> bytes:
    content = io.BytesIO()
    torch.export.save(_program(network, inputs, about), content, extra_files={"about.json": json.dumps(about)})
    return content.getvalue()


def _onnx(network: nn.Module, inputs: Inputs, about: Mapping[str, str]) -> bytes:
    program = torch.onnx.export(
        _program(network, inputs, about), dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
    )
    program.model.metadata_props.update(about)
    return program.model_proto.SerializeToString()


# By the end of a file's name: how it is made, and the packages that takes beside the project's own.
KINDS: dict[str, tuple[Callable[..., bytes], tuple[str, ...]]] = {
    ".safetensors": (_safetensors, ("safetensors",)),
    ".onnx": (_onnx, ("onnx", "onnxscript")),
    ".pt2": (_pt2, ()),
}


def check(file: Path) -> None:
    """Raises Missing if a file of this kind, one of `settings.EXPORTS`, cannot be made here."""
    absent = [name for name in KINDS[file.suffix][1] if importlib.util.find_spec(name) is None]
    if absent:
        install = "python -m pip install -r requirements-export.txt"
        raise Missing(f"{file}: {', '.join(absent)} not installed; to install, run: {install}")


def metadata(inputs: Inputs, state: Mapping[str, Any]) -> dict[str, str]:
    """What goes with the weights; values are JSON where they are not text. state: the checkpoint."""
    plain = {name: json.dumps(value) for name, value in inputs.plain().items()}
    trained = {"epochs": state["epochs"], "steps_of_the_next": state["step"]}
    return plain | {
        "fingerprint": state["fingerprint"], "settings": json.dumps(state["config"]), "trained": json.dumps(trained),
    }  # fmt: skip


def export(file: Path, network: nn.Module, state: Mapping[str, Any]) -> int:
    """Writes a network, in eval mode on the CPU, into a file of the kind that its name ends in; returns its size.

    state: the network's checkpoint. Raises Missing, DataError (see `inputs_of`) and OSError.
    """
    check(file)
    inputs = inputs_of(state)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        content = KINDS[file.suffix][0](network, inputs, metadata(inputs, state))
    write_whole(file, lambda opened: opened.write(content))
    return len(content)
