"""The networks by name, what identifies one, and the parts that they share.

A network is a function that builds it, registered under a name:

    @network("resnet18", label="ResNet-18")
    def resnet18() -> nn.Module: ...

One with a parameter `width` takes `--width`, one with `activation` takes `--activation`, one with `classes` data sets
of another number of classes than ten. An option of its own is a keyword of the decorator and of the function:
`@network("mlp", label="MLP", hidden=flag(512, "hidden units", integer(1, 10_000)))` gives the script that defines it
`--hidden`. Weights are drawn by `initialize` afterwards, unless `--init pytorch` leaves them as they were built.
"""

import copy
import hashlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cifar_lab.activations import ACTIVATIONS
from cifar_lab.program import is_out_of_memory
from cifar_lab.project import ROOT
from cifar_lab.settings import CHOICES, SHORT, SIZE, RunConfig, Settings

MASK_32 = 0xFFFFFFFF

# --- The registry ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A registered network."""

    name: str
    label: str  # in figures
    colour: str | None  # of its curves, #rrggbb; None: assigned when drawn
    builder: Callable[..., nn.Module]
    options: Mapping[str, Field]  # flags of its own, by name
    script: Path  # the file that defines it

    def takes(self, setting: str) -> bool:
        """Whether a setting, one of `settings.CHOICES` or the number of classes, is a parameter of its builder."""
        return setting in inspect.signature(self.builder).parameters

    def build(self, config: RunConfig) -> nn.Module:
        """The network with a run's settings. Raises NetworkError if it cannot have as many classes."""
        options = {name: config.options.get(name, f.default) for name, f in self.options.items()}
        shared = {name: getattr(config, name) for name in (*CHOICES, "classes") if self.takes(name)}
        if "classes" not in shared and config.classes != RunConfig.classes:
            raise NetworkError(
                f"{self.name} has {RunConfig.classes} classes, the data {config.classes}; a parameter `classes` of its "
                "function would be given them"
            )
        model = self.builder(**options, **shared)
        initialize(model, config.init, config.activation)
        return model


NETWORKS: dict[str, Network] = {}


class NetworkError(Exception):
    """A network that is not available; the text says which and why."""


def network(name: str, *, label: str, colour: str | None = None, **options: Any) -> Callable:
    """Registers the function below it as the builder of a network. options: `settings.flag`s, see above.

    Raises ValueError for what could not be recorded: config.json and folder names hold all of this.
    """
    if not re.fullmatch(r"[a-z0-9_]{1,64}", name):
        raise ValueError(f"{name!r}: the name of a network has lower-case letters, digits and _")
    if not label.isprintable() or len(label) > 100 or not (colour is None or re.fullmatch("#[0-9a-fA-F]{6}", colour)):
        raise ValueError(f"{name}: a label is a line of text, a colour is #rrggbb")
    last_words = [option.split("_")[-1] for option in options]  # name the options in a folder
    taken = {f.name for f in fields(Settings)} | {f.name for f in fields(RunConfig)} | set(SHORT.values())
    for option, word in zip(options, last_words, strict=True):
        if not re.fullmatch(r"[a-z0-9_]{1,64}", option) or options[option].metadata["many"] or {option, word} & taken:
            raise ValueError(f"{name}: an option cannot be called {option}, or takes several values")
    if len(set(last_words)) < len(last_words):
        raise ValueError(f"{name}: options have different last words")

    def register(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        script = Path(inspect.getsourcefile(inspect.unwrap(builder))).resolve()
        if name in NETWORKS and NETWORKS[name].script != script:
            raise ValueError(f"the network {name} is defined in {NETWORKS[name].script} and in {script}")
        NETWORKS[name] = Network(name, label, colour, builder, options, script)
        return builder

    return register


def build(config: RunConfig) -> nn.Module:
    """The network of a run, its weights drawn from PyTorch's global generator; its script has been imported."""
    return NETWORKS[config.model].build(config)


def networks_of(script: str | Path) -> dict[str, Network]:
    """The networks that a file defines, by name."""
    return {name: n for name, n in NETWORKS.items() if n.script == Path(script).resolve()}


def find_network(name: str, script: str, file: str | Path | None = None) -> Network:
    """The network of that name; the script that defines it is imported if that has not happened yet.

    script: the file's name, as config.json has it; only a file in the project's root is imported, or the one that the
    user names as `file`. Raises NetworkError.
    """
    own = ROOT / script
    path = Path(file) if file and (Path(file).name == script or not own.is_file()) else own
    if name not in NETWORKS or (path != own and NETWORKS[name].script != path.resolve()):
        if path == own and (Path(script).name != script or not script.endswith(".py")):
            raise NetworkError(f"{script!r} is not a script in the project's folder; --script FILE names another one")
        if not path.is_file() or path.suffix != ".py":
            raise NetworkError(f"{path}: no Python file there that defines {name}; --script FILE names another one")
        spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up
        try:
            spec.loader.exec_module(module)
        except SystemExit:
            raise NetworkError(f"{path}: ends the program when it is imported (is there a __main__ guard?)") from None
        except Exception as error:  # a user's file can raise anything
            if is_out_of_memory(error):
                raise
            raise NetworkError(f"{path}: cannot be imported ({type(error).__name__}: {error})") from None
    if name not in NETWORKS:
        raise NetworkError(f"{path}: defines no network {name}")
    return NETWORKS[name]


# --- Identity --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Description:
    """What a network is, apart from its weights."""

    parameters: int
    flops: float  # of one forward and backward pass for one image, as `torch.utils.flop_counter` counts them
    fingerprint: str  # of the operations of a forward pass
    classes: int  # logits of an image
    learned: frozenset[str]  # names of the parameters that the logits depend on, which a training step updates


def describe(model: nn.Module, classes: int = RunConfig.classes) -> Description:
    """Counts and fingerprint of a network as it was built, from passes of a copy.

    The passes are on the meta device, where only shapes are computed, or, if the network cannot run there, on the CPU.
    What depends on the training step, and what stands in a script's training step, is not seen. Raises NetworkError if
    the network has no parameters, does not give a logit per class and image, or computes something else at every pass.
    """
    try:
        try:
            records = [_passes(copy.deepcopy(model).to("meta"), classes) for _ in range(2)]
        except Exception:  # values are needed: data-dependent control flow, constants of its own
            records = [_passes(copy.deepcopy(model), classes) for _ in range(2)]
    except Exception as error:  # a user's network can raise anything
        if is_out_of_memory(error):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise NetworkError(f"the network cannot be run on two images: {why}") from None
    if records[0] != records[1]:
        raise NetworkError("two equal passes compute different things")
    lines, flops, outputs, learned = records[0]
    lines = [f"{name} {p.requires_grad}" for name, p in model.named_parameters()] + lines
    saved = model.state_dict()
    # Buffers that no checkpoint holds are part of what the network is.
    lines += [f"{name} {_digest(b)}" for name, b in model.named_buffers() if name not in saved]
    return Description(
        parameters=sum(p.numel() for p in model.parameters()),
        flops=flops,
        fingerprint=hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
        classes=outputs,
        learned=learned,
    )


def _passes(model: nn.Module, classes: int) -> tuple[list[str], float, int, frozenset[str]]:
    """The record of passes forward and backward in train and eval mode, the FLOPs of training per image, the number of
    logits, and the names of the parameters that have a gradient."""
    device = next(model.parameters()).device
    images = torch.zeros(2, 3, SIZE, SIZE, device=device)  # two: BatchNorm needs more than one value per channel
    record = _Record(model)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        with FlopCounterMode(display=False) as counter, record:
            logits = model.train()(images)
            if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2 or logits.shape[1] < classes:
                raise NetworkError(f"the output is not a tensor of logits, {classes} for each image")
            logits.sum().backward()
        with record:
            model.eval()(images)
    learned = frozenset(name for name, p in model.named_parameters() if p.grad is not None)
    return record.lines, counter.get_total_flops() / len(images), logits.shape[1], learned


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


class _Record(TorchDispatchMode):
    """Writes down every operation: name, plain arguments, and which tensors of which shape it reads and gives.

    Parameters and buffers go by their names, what an operation gives is numbered, other tensors are constants and go by
    their values: so two operations in another order, another slope or scale, or another input of the same shape are
    another record.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.lines: list[str] = []
        named = [*model.named_parameters(), *model.named_buffers()]
        self._names = {id(t): name for name, t in named}
        self._kept = [t for _, t in named]  # an address that is free again would be taken for the same tensor

    def _written(self, x: Any, given: bool) -> str:
        if isinstance(x, Tensor):
            if id(x) not in self._names:
                constant = not given and not x.is_meta and x.numel() < 10_000
                self._names[id(x)] = f"constant {_digest(x)}" if constant else str(len(self._names))
                self._kept.append(x)
            return f"{self._names[id(x)]} {x.dtype} {tuple(x.shape)}"
        if isinstance(x, list | tuple):
            return f"[{', '.join(self._written(y, given) for y in x)}]"
        return repr(x)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        named = sorted(item for item in kwargs.items() if item[0] != "device")
        read = [self._written(args, False), *(f"{k}={self._written(v, False)}" for k, v in named)]
        result = func(*args, **kwargs)
        self.lines.append(f"{func} {' '.join(read)} -> {self._written(result, True)}")
        return result


def statistics_of(model: nn.Module) -> dict[str, Tensor]:
    """BatchNorm's running statistics, buffers of the network, by name."""
    return {
        f"{name}.{buffer}" if name else buffer: tensor
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for buffer, tensor in module.named_buffers()
    }  # fmt: skip


# --- Parts that networks share ---------------------------------------------------------------------------------------


def scaled(channels: int, width: float) -> int:
    """The channel count at a width: a multiple of 8, at least 8."""
    return max(8, int(channels * width / 8 + 0.5) * 8)


def initialize(model: nn.Module, init: str, activation: str = "relu") -> None:
    """Draws the weights of a network in place.

    `he` (He et al. 2015, "Delving Deep into Rectifiers", eq. 10: variance gain^2 / fan-in, 2 / fan-in for ReLU) keeps
    the scale of what passes through layers with this activation; `xavier` is Glorot & Bengio (2010), eq. 16; `pytorch`
    leaves what PyTorch drew, a variance of 1 / (3 fan-in), with which activations shrink from layer to layer: measured
    at width 0.25, Inception at learning rate 1e-4 then stays at a loss of 2.30 for its first 150 steps, and with `he`
    it learns at once. `he` draws convolutions and hidden linear layers; the last linear layer, the output, which no
    activation follows, stays as PyTorch drew it.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    if init == "pytorch":
        return
    if init == "he":
        linear = [module for module in layers if isinstance(module, nn.Linear)]
        layers = [module for module in layers if module not in linear[-1:]]
    for module in layers:
        if init == "he":
            nn.init.normal_(module.weight, std=ACTIVATIONS[activation].gain / math.sqrt(module.weight[0].numel()))
        else:
            nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Branches(nn.ModuleList):
    """Networks side by side: each one's output for the same input.

    The 1x1 convolutions of the input with which branches begin are computed as one convolution, which keeps a processor
    busier than several small ones. Their parameters stay apart, and so do their names.

    While a single run's training step is captured in a CUDA graph, each runs on a stream of its own (`concurrent`). The
    backward pass of a branch runs on the stream of its forward pass, so branches overlap there too. In lockstep the
    runs overlap already, and more streams cost more than they give: on an H100 an epoch of the residual Inception took
    1.48 s with concurrent branches and 2.02 s without, three of them in lockstep 4.18 and 3.35 s.
    """

    concurrent = False

    def forward(self, x: Tensor, *others: nn.Module) -> list[Tensor]:
        """others: further networks beside these, that belong to somebody else."""
        begun = _begin_together([*self, *others], x)
        if not self.concurrent:
            return [branch() for branch in begun]
        main = torch.cuda.current_stream()
        outputs, streams = [], []
        for branch in begun:
            stream = torch.cuda.Stream()
            stream.wait_stream(main)  # fork: x is ready
            with torch.cuda.stream(stream):
                outputs.append(branch())
            streams.append(stream)
        for stream in streams:
            main.wait_stream(stream)  # join
        return outputs


def _begin_together(branches: list[nn.Module], x: Tensor) -> list[Callable[[], Tensor]]:
    """The branches, each with its input; first 1x1 convolutions are already computed, all in one."""
    firsts = [branch[0] if _begins_with_1x1(branch) else None for branch in branches]
    together = [first for first in firsts if first is not None]
    if len(together) < 2:
        return [partial(branch, x) for branch in branches]
    weight = torch.cat([first.weight for first in together])
    parts = F.conv2d(x, weight, torch.cat([first.bias for first in together]))
    # Not `split`, whose parts cannot be changed in place, by a ReLU for example; nobody else reads the whole.
    outputs = iter(torch.unsafe_split_with_sizes(parts, [first.out_channels for first in together], dim=1))

    def rest(branch: nn.Sequential, x: Tensor) -> Tensor:
        for layer in list(branch)[1:]:
            x = layer(x)
        return x

    return [
        partial(branch, x) if first is None else partial(rest, branch, next(outputs))
        for branch, first in zip(branches, firsts, strict=True)
    ]


def _begins_with_1x1(branch: nn.Module) -> bool:
    """Whether a branch is plain layers without hooks, the first a 1x1 convolution of all its input, with a bias."""
    if type(branch) is not nn.Sequential or not branch or type(layer := branch[0]) is not nn.Conv2d:
        return False
    hooks = [(m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
             for m in (branch, layer)]  # fmt: skip
    return (
        not any(map(any, hooks)) and "weight" in layer._parameters  # not computed from others, by pruning for example
        and layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0)
        and layer.groups == 1 and layer.bias is not None
    )  # fmt: skip


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers that decorrelates neighbours (Wellons 2018, `lowbias32`). x: int64, below 2^32."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D & MASK_32
    x = x ^ (x >> 15)
    x = x * 0x846CA68B & MASK_32
    return x ^ (x >> 16)


class StepDropout(nn.Module):
    """Dropout (Srivastava et al. 2014) whose mask is a function of (seed, step, element) and of nothing else.

    The mask is a hash of counters instead of a draw from a generator, so it is the same on every device, alone and in
    lockstep, eager and replayed from a CUDA graph, and after a resume.
    """

    def __init__(self, p: float, seed: int = 0) -> None:
        super().__init__()
        self.p = p
        self.seed = seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("elements", torch.empty(0, dtype=torch.int64), persistent=False)

    def follow(self, step: Tensor, seed: int) -> None:
        """Draws masks of this seed at the step that `step`, a scalar int64 tensor, holds; it is advanced in place."""
        self.step, self.seed, self.elements = step, seed, self.elements[:0]

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape, unchanged in eval mode."""
        if not self.training or not self.p:
            return x
        if len(self.elements) < x.numel() or self.elements.device != x.device:
            self.elements = _mix(torch.arange(x.numel(), device=x.device) + self.seed & MASK_32)
        # The step's key is an odd multiple of its number, a bijection of 32-bit integers as well.
        bits = _mix(self.elements[: x.numel()] ^ (self.step * 0x9E3779B1 & MASK_32))
        return x * (bits >= int(self.p * 2**32)).view(x.shape) / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
