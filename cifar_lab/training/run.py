"""One network in training: its weights, optimizer and position, and how they are saved and loaded."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifar_lab.losses import LOSSES
from cifar_lab.measures.evaluation import predictor
from cifar_lab.networks import Description, StepDropout, build
from cifar_lab.optimizers import build_optimizer
from cifar_lab.run_folder import checkpoint
from cifar_lab.run_folder.ownership import FolderError
from cifar_lab.run_folder.reader import final_accuracy, read_run
from cifar_lab.run_folder.validation import Form
from cifar_lab.run_folder.writer import Recorder
from cifar_lab.schedules import factor_at, factors
from cifar_lab.settings import SIZE
from cifar_lab.training.evaluated import WeightAverage, estimated_statistics
from cifar_lab.training.loader import Loader
from cifar_lab.training.plan import DROPOUT, INITIALIZATION, seed_of, stream_seed
from cifar_lab.training.position import Position
from cifar_lab.width import parameter_groups, recorded, scale_output


class TrainingRun:
    """One network in training: model, optimizer, position, and the folder that it is recorded in."""

    def __init__(
        self, description: Description, label: str, recorder: Recorder, loader: Loader, threads: int
    ) -> None:  # fmt: skip
        """description: what `networks.describe` says of the network. label: tells the run from others of its group.
        threads: of the CPU, that compute it."""
        self.config = recorder.config
        self.label = label
        self.criterion = LOSSES[self.config.loss].function
        self.recorder = recorder
        self.description = description
        self._loader = loader
        self._device = loader.device
        self.threads = threads
        seed = seed_of(self.config)
        with torch.random.fork_rng(devices=[]):
            # Drawn on the CPU, so that the weights do not depend on the device.
            torch.manual_seed(stream_seed(seed, INITIALIZATION))
            model = build(self.config)
        scale_output(self.config, model)
        self.model = loader.device.place(model).train()
        dropouts = [module for module in self.model.modules() if isinstance(module, StepDropout)]
        # A CUDA graph advances one counter for all runs; on a CPU they are at steps of their own.
        self._step = loader.step.clone() if loader.device.torch.type == "cpu" else loader.step
        for i, dropout in enumerate(dropouts):
            dropout.follow(self._step, stream_seed(seed, DROPOUT) + (i << 24))
        self.average = WeightAverage(self.model, self.config.ema, self._step) if self.config.ema else None
        self.statistics: dict[str, Tensor] = {}  # of BatchNorm, estimated again, by name; empty before the last epoch
        groups = parameter_groups(self.config, self.model)
        self.optimizer = build_optimizer(self.config, groups, loader.device.torch)
        self._form = Form(self.config, description, self.model)
        # With a schedule, the optimizer reads its learning rates from tensors, which each step sets on the device.
        self._factors = factors(self.config, loader.steps)
        self._factor_table = torch.tensor(self._factors, device=loader.device.torch)
        self._full_rates = [group["lr"] for group in groups if self._factors]
        self.rates = [torch.zeros((), device=loader.device.torch) for _ in self._full_rates]
        self._hold_rates()
        self.width_factors = recorded(self.config, self.model)
        self.position = Position(loader.steps)
        self.ended = False
        # Of the epoch under way, on the device; the host reads them about once a second.
        self.losses = torch.zeros(loader.steps, device=loader.device.torch)
        self.correct = torch.zeros(loader.steps, dtype=torch.int64, device=loader.device.torch)
        self.epoch_seconds = 0.0
        self.train_seconds = 0.0
        self.test_seconds = 0.0
        self.accuracies: list[float] = []  # percent, one per epoch, on the test images or those for validation
        self.predictions: Tensor | None = None  # (test images,), of the latest evaluation, on the device
        self.tested: tuple[float, float] | None = None  # with validation images: test loss, and accuracy in percent
        self.probes: list[tuple] = []
        self.probes_stopped_at: int | None = None
        self._saved_at: tuple[int, int] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, 32, 32) to logits (B, classes), fp32, computed in the device's precision."""
        return self._device.forward(self.model, images)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a training batch: logits (B, classes), labels (B,); with mixup (Zhang et al. 2018, "mixup: Beyond
        Empirical Risk Minimization") the weighted mean of those against the labels of both images."""
        if not self.config.mixup:
            return self.criterion(logits, labels)
        weight = self._loader.mix.take(self._step % self._loader.steps)
        return torch.lerp(self.criterion(logits, labels.flip(0)), self.criterion(logits, labels), weight)

    @property
    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights and statistics, by name; empty without an average."""
        return self.average.tensors if self.average else {}

    def predictor(self) -> Callable[[Tensor], Tensor]:
        """Images to logits as above, as an evaluation has them."""
        forward = partial(self._device.forward, self.model, others=self.averaged | self.statistics)
        return predictor(forward, self.config.test_time_flip)

    def estimate_statistics(self) -> None:
        """Estimates BatchNorm's statistics again, for the network that is evaluated; leaves it in eval mode."""
        self.statistics = estimated_statistics(
            self.model, lambda images, found: self._device.forward(self.model, images, self.averaged | found),
            self._loader.first_images(self.config.bn_images),
        )  # fmt: skip

    def count_steps(self, taken: int) -> None:
        """Tells the network how many steps were taken before the next one, where the loader's counter does not."""
        if self._step is not self._loader.step:
            self._step.fill_(taken)

    def _hold_rates(self) -> None:
        """Puts the tensors in the place of the optimizer's learning rates."""
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=False):
            rate.fill_(group["lr"])
            group["lr"] = rate

    def set_rates(self) -> None:
        """Sets the learning rates of the next step. Reads nothing from the host, so that a graph can capture it."""
        if self.rates:
            factor = self._factor_table.take(self._step.clamp(max=len(self._factors) - 1))
            for rate, full in zip(self.rates, self._full_rates, strict=True):
                torch.mul(factor, full, out=rate)

    def _learning_rate(self) -> float:
        """Of the epoch's last step."""
        steps = self._loader.steps
        return self.config.lr * factor_at(self.config, steps, (self.position.epochs + 1) * steps - 1)

    @property
    def prefix(self) -> str:
        """Of console messages about this run; empty if it is alone."""
        return f"{self.label}: " if self.label else ""

    def at(self, epoch: int, step: int) -> bool:
        """Whether the step of the epoch (from 1; step from 0) is the next thing that this run has to do."""
        return not self.ended and self.position.at(epoch, step)

    def record_probe(self, step: int, result: Any) -> None:
        """Keeps a probe, a dataclass of arrays (E,) in the order of the columns of probes.csv.

        It is written with the next checkpoint or epoch. The first gradient that is not finite ends the probes.
        """
        if self.probes_stopped_at is not None:
            return
        if not np.isfinite(result.grad_norm).all():
            self.probes_stopped_at = step
        else:
            self.probes += [(step, *map(float, row)) for row in zip(*astuple(result), strict=True)]

    def _flush_probes(self) -> None:
        if self.probes:
            self.recorder.append_probes(self.probes)
            self.probes = []

    # --- The end of an epoch, and of the run ----------------------------------------------------------------------

    def end_epoch(self, loss: float, accuracy: float) -> dict[str, float]:
        """Writes the epoch's rows and moves the run on. Returns train_loss, train_accuracy and test_accuracy, or
        validation_accuracy.

        loss, accuracy: on the test images or those for validation. Accuracies are in percent.
        """
        losses = self.losses.cpu().numpy()
        images = len(self._loader.images)
        sizes = np.array([self._loader.size(i) for i in range(len(losses))])
        train_loss = float(losses.astype(np.float64) @ sizes / images)
        train_accuracy = 100 * int(self.correct.sum()) / images
        seconds = max(self.epoch_seconds, 1e-9)
        self.recorder.append_steps(self.position.epochs * len(losses) + 1, losses)
        self._flush_probes()
        written_accuracy = f"{accuracy:.3f}"
        self.recorder.append_epoch(
            [
                self.position.epochs + 1, self._learning_rate(), f"{train_loss:.6f}", f"{train_accuracy:.3f}",
                f"{loss:.6f}", written_accuracy, f"{seconds:.4f}", f"{images / seconds:.1f}",
            ]
        )  # fmt: skip
        self.position.end_epoch()
        self.accuracies.append(float(written_accuracy))
        self.train_seconds += self.epoch_seconds
        self.epoch_seconds = 0.0
        held_out = self.recorder.held_out
        return {"train_loss": train_loss, "train_accuracy": train_accuracy, f"{held_out}_accuracy": accuracy}

    def truncate_log(self, index: int) -> int:
        """Keeps the log up to before a step of the epoch (from 0), whose loss is not finite.

        Returns that step's number over the whole run, from 1.
        """
        self.position.go_to(self.position.epochs, index)
        before = self.position.total
        self.recorder.append_steps(before - index + 1, self.losses[:index].cpu().numpy())
        self.probes = [probe for probe in self.probes if probe[0] <= before]
        self.train_seconds += self.epoch_seconds
        return before + 1

    def finish(self, matmul_rate: float, diverged_at_step: int | None = None) -> dict[str, Any]:
        """The end: last checkpoint (never of weights that are not finite) and summary, whose content it returns.

        matmul_rate: FLOP/s that the device reaches in a matrix product.
        """
        if diverged_at_step is None:
            if self.predictions is not None:  # None: they were written before the checkpoint that this run starts from
                self.recorder.write_predictions(self._loader.test_labels.cpu().numpy(), self.predictions.cpu().numpy())
            self.save()
        self._flush_probes()
        self.recorder.sync_logs()
        images = len(self._loader.images)
        # Steps of an epoch that is not whole are logged only up to a divergence.
        epochs, step = self.position.epochs, self.position.step if diverged_at_step is not None else 0
        steps = epochs * self.position.steps_per_epoch + step
        trained = epochs * images + min(step * self._loader.batch_size, images)
        speed = trained / max(self.train_seconds, 1e-9) if self.train_seconds else None
        # With smaller images at first, an image has no one number of FLOPs.
        flops = self.description.flops if self.config.first_size == SIZE else None
        summary = {
            "epochs": epochs,
            "steps": steps,
            "final_accuracy": final_accuracy(self.accuracies),
            "last_accuracy": self.accuracies[-1] if self.accuracies else None,
            f"best_accuracy_selected_on_{self.recorder.held_out}": max(self.accuracies, default=None),
            **({"test_loss": _or_none(self.tested[0]), "test_accuracy": self.tested[1]} if self.tested else {}),
            "diverged_at_step": diverged_at_step,
            **({"probes_stopped_at_step": self.probes_stopped_at} if self.probes_stopped_at else {}),
            "train_seconds": self.train_seconds,
            "test_seconds": self.test_seconds,
            "images_per_second": speed,
            "parameters": self.description.parameters,
            "flops_per_training_image": flops,
            "tflops": speed and flops and speed * flops / 1e12,
            "matmul_tflops": matmul_rate / 1e12,
            "share_of_matmul_rate": speed and flops and speed * flops / matmul_rate,
        }
        self.recorder.finish(summary)
        self.ended = True
        return summary

    # --- Checkpoints ---------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes a checkpoint; the host waits for the device.

        Weights that are not finite are not saved: the next loss is not either, and a run that is continued from the
        checkpoint before comes to the same end.
        """
        here = (self.position.epochs, self.position.step)
        if self._saved_at == here or not self._form.is_finite(self.model, self.optimizer):
            return
        self._flush_probes()
        self.recorder.sync_logs()
        checkpoint.save(self.recorder.folder, self._state(), self.recorder.hold.check)
        self._saved_at = here

    def keep(self) -> None:
        """Writes a checkpoint that stays, without the optimizer's state; the host waits for the device."""
        state = self._state() | {"optimizer": {}}
        checkpoint.keep(self.recorder.folder, self.position.total, state, self.recorder.hold.check)

    def _state(self) -> dict[str, Any]:
        """The content of a checkpoint."""
        epochs, step = self.position.epochs, self.position.step
        optimizer = self.optimizer.state_dict()
        for group, full in zip(optimizer["param_groups"], self._full_rates, strict=False):
            group["lr"] = full  # which that of a step follows from
        return {
            "config": asdict(self.config),
            "fingerprint": self.description.fingerprint,
            "inputs": self._loader.inputs.plain(),
            "model": _contiguous(self.model.state_dict()),
            "optimizer": optimizer,
            "epochs": epochs,
            "step": step,
            "losses": self.losses[:step].cpu(),
            "correct": self.correct[:step].cpu(),
            "epoch_seconds": self.epoch_seconds,
            "train_seconds": self.train_seconds,
            "test_seconds": self.test_seconds,
            "probes_stopped_at": self.probes_stopped_at,
            **({"average": _contiguous(self.averaged)} if self.average else {}),
            **({"statistics": _contiguous(self.statistics)} if self.config.bn_images else {}),
        }

    def _load_state(self, state: dict) -> None:
        """Continues from a checkpoint, which is of this run's form.

        The optimizer's settings stay those of the command line and of this device; each moment is copied into memory of
        its parameter's own layout.
        """
        self.model.load_state_dict(state["model"])
        for name, tensor in self.averaged.items():
            tensor.copy_(state["average"][name])
        place = self.losses.device
        self.statistics = {name: tensor.to(place) for name, tensor in state.get("statistics", {}).items()}
        own = self.optimizer.state_dict()["param_groups"]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {
            i: {name: torch.empty_like(parameters[i]).copy_(x) if x.dim() else x.clone() for name, x in of.items()}
            for i, of in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict({"state": moments, "param_groups": own})
        self._hold_rates()
        self.position.go_to(state["epochs"], state["step"])
        self.losses[: state["step"]] = state["losses"].to(self.losses.device)
        self.correct[: state["step"]] = state["correct"].to(self.correct.device)
        self.epoch_seconds, self.train_seconds = state["epoch_seconds"], state["train_seconds"]
        self.test_seconds = state["test_seconds"]
        self.probes_stopped_at = state.get("probes_stopped_at")
        self._saved_at = (state["epochs"], state["step"])

    def resume(self, warn: Callable[[str], None]) -> bool:
        """Loads the newest usable checkpoint and truncates the logs to it; False if there is none.

        warn: is told of a newer one that is damaged. Raises what `continuation` raises, and then has changed nothing.
        """
        begun = continuation(self.recorder, self._form)
        if begun.state:
            self._load_state(begun.state)
        for reason in begun.passed_over:
            warn(reason)
        self.recorder.truncate(begun.kept)
        if begun.state:
            accuracies = read_run(self.recorder.folder).column("test_accuracy")
            self.accuracies = accuracies[: self.position.epochs].tolist()
        if begun.passed_over:
            checkpoint.set_aside(self.recorder.folder, self.recorder.hold.check)
        return bool(begun.state)


@dataclass(frozen=True)
class Continuation:
    """From where a run can be continued."""

    state: dict | None  # of the newest usable checkpoint; None: from the start
    passed_over: list[str]  # what is wrong with a newer one
    kept: dict[str, list[bytes]]  # the rows of each log up to there


def continuation(recorder: Recorder, form: Form) -> Continuation:
    """From where a run can be continued. Changes nothing.

    Raises CheckpointError if there are checkpoints and none can be used, and FolderError if the logs hold less.
    """
    folder = recorder.folder
    try:
        state, passed_over = checkpoint.newest(folder, form)
    except checkpoint.CheckpointError as error:
        raise checkpoint.CheckpointError(f"{error}; --fresh starts again and keeps the old folder") from None
    if not state and (folder / "summary.json").exists():
        raise checkpoint.CheckpointError(
            f"{folder / checkpoint.NEWEST}: there is no checkpoint from which the finished run could continue; "
            "--fresh starts again and keeps the old folder"
        )
    here = state or {"epochs": 0, "step": 0}
    steps = here["epochs"] * recorder.config.steps_per_epoch
    stopped = here.get("probes_stopped_at")
    probed = stopped - 1 if stopped else steps + here["step"]
    return Continuation(state, passed_over, recorder.kept(here["epochs"], steps, probed))


def check_continuation(description: Description, recorder: Recorder, epochs: int) -> None:
    """Raises what `TrainingRun.resume` would raise, before anything is trained, and FolderError if the run was stopped
    in an epoch beyond those that are asked for: what ends within an epoch is nobody's result."""
    with torch.random.fork_rng(devices=[]):
        model = build(recorder.config)
    state = continuation(recorder, Form(recorder.config, description, model)).state
    if state and state["step"] and state["epochs"] >= epochs:
        begun = state["epochs"] + 1
        raise FolderError(
            f"{recorder.folder}: was stopped in epoch {begun}; --epochs {begun} or more continues it, --fresh starts "
            "again"
        )


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _or_none(value: float) -> float | None:
    """A number as JSON has them."""
    return value if np.isfinite(value) else None
