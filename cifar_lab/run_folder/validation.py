"""Whether a checkpoint holds what the run itself would have written, before anything of it is taken over.

A checkpoint is data from a stranger: `torch.load` gives tensors of any shape and layout, and
`Optimizer.load_state_dict` takes over whatever it is given. A fused optimizer then writes past the end of a moment that
is too short, another learning rate is trained with, and a moment that is missing starts again from zero.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cifar_lab.networks import Description, statistics_of
from cifar_lab.optimizers import build_optimizer
from cifar_lab.run_folder.inputs import is_plain
from cifar_lab.run_folder.schema import completed
from cifar_lab.settings import MOST_EPOCHS, RunConfig, differing
from cifar_lab.width import parameter_groups

LONGEST = 1e12  # seconds: any time of a run is shorter
DEVICE_FLAGS = {"foreach", "fused", "capturable"}  # how an optimizer computes: those of the present device are used
PLAIN = bool | int | float | str | None
# Buffers of BatchNorm and moments of torch's optimizers whose roots are taken, or that count.
NOT_NEGATIVE = {
    "running_var", "num_batches_tracked", "step", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta",
    "exp_inf",
}  # fmt: skip


@dataclass(frozen=True)
class Like:
    """A dense tensor on the CPU, without its content."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: float = -math.inf
    high: float = math.inf
    finite: bool = True
    whole: bool = False  # whether it holds whole numbers only

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "Like":
        """One like a tensor of the run's own, as it is before training: a mask of infinities may stay one."""
        low = 0.0 if name.rpartition(".")[2] in NOT_NEGATIVE else -math.inf
        finite = tensor.is_meta or bool(tensor.isfinite().all())
        return cls(tuple(tensor.shape), tensor.dtype, low, finite=finite)

    def difference(self, name: str, found: Any) -> str:
        """In what a value differs from such a tensor; empty if in nothing."""
        if type(found) not in (Tensor, nn.Parameter) or found.layout != torch.strided or found.device.type != "cpu":
            return f"{name} is not a dense tensor"
        if (tuple(found.shape), found.dtype) != (self.shape, self.dtype):
            return f"{name} is {found.dtype} {tuple(found.shape)} instead of {self.dtype} {self.shape}"
        if not found.numel():
            return ""
        if self.finite and not found.isfinite().all():
            return f"{name} is not finite"
        if (self.low, self.high) != (-math.inf, math.inf) and not self.low <= found.min() <= found.max() <= self.high:
            return f"{name} is not within {self.low:g} and {self.high:g}"
        return f"{name} is not whole" if self.whole and (found != found.round()).any() else ""


class Form:
    """What the checkpoints of a run hold, from its network and optimizer as they are before training."""

    def __init__(self, config: RunConfig, description: Description, model: nn.Module, optimizer: bool = True) -> None:
        """model: on any device, not yet trained. optimizer: whether the optimizer's state is compared too."""
        self._config = config
        self._description = description
        self._model = {name: Like.of(name, tensor) for name, tensor in model.state_dict().items()}
        self._statistics = {name: self._model[name] for name in statistics_of(model)} if config.bn_images else {}
        self._groups: list[dict] | None = None
        if optimizer:
            self._groups, self._moments, self._optional = _optimizer_form(config, description, model)

    @property
    def largest(self) -> int:
        """Bytes that no checkpoint of the run has; with AMSGrad one has four times those of the weights."""
        return (1 << 26) + 8 * sum(math.prod(like.shape) * like.dtype.itemsize for like in self._model.values())

    def difference(self, state: Any) -> str:
        """The first thing in which the content of a checkpoint differs, in words; empty if there is none."""
        return next(self._differences(state), "")

    def is_finite(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
        """Whether a run's weights and moments are what a checkpoint may hold; the host waits."""
        tensors = [tensor for name, tensor in model.state_dict().items() if self._model[name].finite]
        tensors += [x for moments in optimizer.state.values() for x in moments.values() if isinstance(x, Tensor)]
        return bool(torch.stack([tensor.isfinite().all().to(tensors[0].device) for tensor in tensors]).all())

    def _differences(self, state: Any) -> Iterator[str]:
        needed = {
            "config", "fingerprint", "model", "optimizer", "epochs", "step", "losses", "correct", "epoch_seconds",
            "train_seconds", "test_seconds",
        }  # fmt: skip
        if not isinstance(state, dict):
            yield "not a checkpoint of this project"
            return
        needed |= {key for key, of in (("average", self._config.ema), ("statistics", self._config.bn_images)) if of}
        yield from _keys("the checkpoint", state, needed, {"probes_stopped_at", "inputs"})
        if "inputs" in state and not is_plain(state["inputs"]):
            yield "inputs are not classes, shape, mean and deviation"
        elif "inputs" in state and (named := len(state["inputs"]["classes"])) != self._config.classes:
            yield f"inputs have {named} classes instead of {self._config.classes}"
        yield from self._of_identity(state)
        yield from _tensors("model", state["model"], self._model)
        if "average" in needed:
            floating = {
                name: like for name, like in self._model.items() if like.dtype.is_floating_point and like.finite
            }
            yield from _tensors("average", state["average"], floating)
        if "statistics" in needed and state["statistics"] != {}:
            yield from _tensors("statistics", state["statistics"], self._statistics)
        yield from self._of_position(state)
        if self._groups is not None:
            yield from self._of_optimizer(state["optimizer"], self._total(state))

    def _of_identity(self, state: dict) -> Iterator[str]:
        yield from _keys("config", state["config"], set(), state["config"])
        try:
            json.dumps(state["config"])  # plain values, which can be compared and shown
            differ = differing(completed(state["config"]), asdict(self._config))
        except (TypeError, ValueError, RecursionError):
            differ = ["not plain values"]
        if differ:
            yield f"of a run with other settings ({', '.join(differ)})"
        own = self._description.fingerprint
        if not _equal(state["fingerprint"], own):
            shown = _shown(state["fingerprint"])
            yield f"of another network (fingerprint {shown}; that of {self._config.model} is now {own})"

    def _of_position(self, state: dict) -> Iterator[str]:
        yield from _number("epochs", state["epochs"], int, MOST_EPOCHS)
        yield from _number("step", state["step"], int, self._config.steps_per_epoch)
        for key in ("epoch_seconds", "train_seconds", "test_seconds"):
            yield from _number(key, state[key], float, LONGEST)
        taken = (state["step"],)
        yield from _tensors("", state, {
            "losses": Like(taken, torch.float32), "correct": Like(taken, torch.int64, 0, self._config.batch_size),
        })  # fmt: skip
        if (stopped := state.get("probes_stopped_at")) is not None:
            yield from _number("probes_stopped_at", stopped, int, self._total(state))
            if not self._config.probe_every or not stopped or stopped % self._config.probe_every:
                yield "probes_stopped_at is not a step that was probed"

    def _total(self, state: dict) -> int:
        """Steps behind the run, over all epochs."""
        return state["epochs"] * self._config.steps_per_epoch + state["step"]

    def _of_optimizer(self, found: Any, total: int) -> Iterator[str]:
        yield from _keys("optimizer", found, {"state", "param_groups"})
        groups, moments = found["param_groups"], found["state"]
        if not isinstance(groups, list) or len(groups) != len(self._groups):
            yield f"optimizer has not {len(self._groups)} parameter groups"
        for i, (group, own) in enumerate(zip(groups, self._groups, strict=True)):
            # Another version of PyTorch may have fewer settings; those of the run are used.
            yield from _keys(f"optimizer group {i}", group, {"params"}, own.keys() | DEVICE_FLAGS)
            for name in own.keys() & group.keys() - DEVICE_FLAGS:
                if not isinstance(own[name], Tensor) and not _equal(group[name], own[name]):
                    shown = f" ({_shown(group[name])} instead of {own[name]})" if name != "params" else ""
                    yield f"of another optimizer: {name} differs{shown}"
        if not isinstance(moments, dict) or moments.keys() - self._moments.keys():
            yield "optimizer state is not of this network's parameters"
        for i, own in self._moments.items():
            of_parameter = moments.get(i, {})
            yield from _keys(f"optimizer state {i}", of_parameter, set(), of_parameter)
            if not of_parameter and (i in self._optional or not total):
                continue
            of_run = {name: replace(like, low=1, high=total, whole=True) if name == "step" else like
                      for name, like in own.items()}  # fmt: skip
            yield from _tensors(f"optimizer state {i}", of_parameter, of_run)


def _optimizer_form(config: RunConfig, description: Description, model: nn.Module) -> tuple[list, dict, set]:
    """An optimizer's groups, its moments for each parameter by number, and which parameters may be without."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(config, model)
    parameters = [p for group in groups for p in group["params"]]

    def after_a_step(device: str) -> dict:
        """Shapes alone, on the meta device: nothing is allocated or computed."""
        stand_ins = {p: torch.zeros_like(p, device=device).requires_grad_() for p in parameters}
        for stand_in in stand_ins.values():
            stand_in.grad = torch.zeros_like(stand_in)
        own = [group | {"params": [stand_ins[p] for p in group["params"]]} for group in groups]
        optimizer = build_optimizer(config, own, torch.device(device))
        optimizer.step()
        return optimizer.state_dict()

    try:
        made = after_a_step("meta")
    except RuntimeError:  # some optimizers read values
        made = after_a_step("cpu")
    moments = {i: {name: Like.of(name, x) for name, x in made["state"].get(i, {}).items()}
               for i in range(len(parameters))}  # fmt: skip
    optional = {i for i, p in enumerate(parameters) if names[id(p)] not in description.learned}
    return made["param_groups"], moments, optional


def _keys(name: str, found: Any, needed: set, others: Any = frozenset()) -> Iterator[str]:
    """Whether a value is a dict with the keys `needed`, and none beyond `others`."""
    if not isinstance(found, dict):
        yield f"{name} is not a dict"
        return
    for key in sorted(needed - found.keys()):
        yield f"{name} has no {key}"
    for key in found.keys() - needed - set(others):
        yield f"{name} has an unknown {_shown(key)}"


def _tensors(name: str, found: Any, expected: Mapping[str, Like]) -> Iterator[str]:
    """Whether a dict holds such tensors; without a name it may hold other things too."""
    yield from _keys(name, found, set(expected), found if not name else ())
    for key, like in expected.items():
        if why := like.difference(f"{name} {key}".strip(), found[key]):
            yield why


def _number(name: str, found: Any, kind: type, high: float) -> Iterator[str]:
    if type(found) is not kind or not 0 <= found <= high:
        yield f"{name} is not {'an integer' if kind is int else 'a number'} from 0 to {high:g}"


def _equal(found: Any, own: Any) -> bool:
    """Whether two settings of an optimizer are the same; only plain values are compared."""
    if isinstance(own, list | tuple):
        return type(found) is type(own) and len(found) == len(own) and all(map(_equal, found, own))
    return isinstance(found, PLAIN) and found == own


def _shown(value: Any) -> str:
    """A value from the file, or, if it is not a plain one, its type."""
    plain = all(isinstance(x, PLAIN) for x in (value if isinstance(value, tuple) else (value,)))
    return ascii(value)[:60] if plain else type(value).__name__
