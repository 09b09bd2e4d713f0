"""One network in training: its weights, optimizer and position, and how they are saved and taken up again."""

from collections.abc import Callable
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cifar_lab import checkpoint
from cifar_lab.config import RunConfig
from cifar_lab.console import duration
from cifar_lab.device import flops_per_training_image, matmul_rate
from cifar_lab.layers import StepDropout
from cifar_lab.loader import Loader
from cifar_lab.optimizers import build_optimizer
from cifar_lab.plan import INITIALIZATION, stream_seed
from cifar_lab.recorder import Recorder
from cifar_lab.runs import final_epochs, read_run


class TrainingRun:
    """One network in training: model, optimizer, position, and the folder that it is recorded in."""

    def __init__(
        self, config: RunConfig, label: str, recorder: Recorder, loader: Loader, build: Callable[[RunConfig], nn.Module]
    ) -> None:
        self.config = config
        self.label = label  # what tells it from the others of its group
        self.recorder = recorder
        self._loader = loader
        self._device = loader.device
        with torch.random.fork_rng(devices=[]):
            # Drawn on the CPU, so that the weights do not depend on the device.
            torch.manual_seed(stream_seed(config.seed, INITIALIZATION))
            model = build(config)
        self.model = loader.device.place(model).train()
        for module in self.model.modules():
            if isinstance(module, StepDropout):
                module.step = loader.global_step
        self.optimizer = build_optimizer(config, self.model.parameters(), loader.device.torch)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        with torch.device("meta"):
            self.flops = flops_per_training_image(build(config))
        self.epochs = 0  # whole epochs behind it
        self.step = 0  # steps of the next epoch behind it
        self.ended = False
        # Of the epoch under way, on the device; the host reads them now and then.
        self.losses = torch.zeros(loader.steps, device=loader.device.torch)
        self.correct = torch.zeros(loader.steps, dtype=torch.int64, device=loader.device.torch)
        self.epoch_seconds = 0.0
        self.train_seconds = 0.0
        self.test_seconds = 0.0
        self.probes: list[tuple] = []
        self.probes_stopped_at: int | None = None
        self.saved_at: tuple[int, int] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, 32, 32) to logits (B, classes), fp32, computed in the device's precision."""
        return self._device.forward(self.model, images)

    @property
    def prefix(self) -> str:
        """Stands before what is said of this run; empty where it is alone."""
        return f"{self.label}: " if self.label else ""

    def at(self, epoch: int, step: int) -> bool:
        """Whether the step of the epoch (from 1; step from 0) is the next thing that this run has to do."""
        return not self.ended and (self.epochs, self.step) == (epoch - 1, step)

    def record_probe(self, step: int, result: Any) -> None:
        """Takes down a probe, a dataclass of arrays (E,) in the order of the columns of probes.csv.

        It is written with the next checkpoint or epoch. The first gradient that is not finite ends the probes.
        """
        if self.probes_stopped_at is not None:
            return
        if not np.isfinite(result.grad_norm).all():
            self.probes_stopped_at = step
        else:
            self.probes += [(step, *map(float, row)) for row in zip(*astuple(result), strict=True)]

    def flush_probes(self) -> None:
        if self.probes:
            self.recorder.append_probes(self.probes)
            self.probes = []

    # --- The end of an epoch, and of the run ----------------------------------------------------------------------

    def end_epoch(self, test_loss: float, test_accuracy: float) -> str:
        """Writes the epoch's rows and moves the run on. Returns the result in words.

        test_loss: nats; test_accuracy: percent.
        """
        losses = self.losses.cpu().numpy()
        images = len(self._loader.images)
        sizes = np.array([self._loader.size(i) for i in range(len(losses))])
        train_loss = float(losses.astype(np.float64) @ sizes / images)
        train_accuracy = 100 * int(self.correct.sum()) / images
        seconds = max(self.epoch_seconds, 1e-9)
        self.recorder.append_steps(self.epochs * len(losses) + 1, losses)
        self.flush_probes()
        self.recorder.append_epoch(
            [
                self.epochs + 1, self.config.lr, f"{train_loss:.6f}", f"{train_accuracy:.3f}", f"{test_loss:.6f}",
                f"{test_accuracy:.3f}", f"{seconds:.4f}", f"{images / seconds:.1f}",
            ]
        )  # fmt: skip
        self.epochs += 1
        self.step = 0
        self.train_seconds += self.epoch_seconds
        self.epoch_seconds = 0.0
        return f"{self.prefix}loss {train_loss:.3f}, accuracy {train_accuracy:.1f}%, test accuracy {test_accuracy:.2f}%"

    def cut_at(self, index: int) -> int:
        """Keeps the log up to before a step of the epoch (from 0), whose loss is not finite.

        Returns that step's number over the whole run, from 1.
        """
        before = self.epochs * len(self.losses)
        self.step = index
        self.recorder.append_steps(before + 1, self.losses[:index].cpu().numpy())
        self.probes = [probe for probe in self.probes if probe[0] <= before + index]
        self.train_seconds += self.epoch_seconds
        return before + index + 1

    def finish(self, diverged_at_step: int | None = None) -> str:
        """The end: last checkpoint (never of weights that are not finite) and summary. Returns the result in words."""
        if diverged_at_step is None:
            self.save()
        self.flush_probes()
        self.recorder.sync_logs()
        logs = read_run(self.recorder.folder)
        accuracy, final = logs.epochs["test_accuracy"], logs.final_accuracy
        images = len(self._loader.images)
        trained = self.epochs * images + min(self.step * self._loader.batch_size, images)
        speed = trained / self.train_seconds if self.train_seconds else None
        rate = matmul_rate(self._device)
        summary = {
            "epochs": self.epochs,
            "steps": len(logs.losses),
            "final_accuracy": final,
            "last_accuracy": float(accuracy[-1]) if len(accuracy) else None,
            "best_accuracy_selected_on_test": float(accuracy.max()) if len(accuracy) else None,
            "diverged_at_step": diverged_at_step,
            **({"probes_stopped_at_step": self.probes_stopped_at} if self.probes_stopped_at else {}),
            "train_seconds": self.train_seconds,
            "test_seconds": self.test_seconds,
            "images_per_second": speed,
            "parameters": self.parameters,
            "flops_per_training_image": self.flops,
            "tflops": speed and speed * self.flops / 1e12,
            "matmul_tflops": rate / 1e12,
            "share_of_matmul_rate": speed and speed * self.flops / rate,
        }
        self.recorder.finish(summary)
        self.ended = True
        words = [f"{self.prefix}{duration(self.train_seconds)} of training and {duration(self.test_seconds)} of tests"]
        if final is not None:
            n = final_epochs(self.epochs)
            over = f"mean of the last {n} epochs" if n > 1 else "of one epoch"
            words.append(f"final test accuracy {final:.2f}% ({over})")
        if speed:
            words.append(f"{speed:.0f} images/s, {summary['tflops']:.3g} TFLOP/s")
            words.append(f"{100 * summary['share_of_matmul_rate']:.0f}% of the matrix-product rate")
        if self.probes_stopped_at:
            words.append(f"probes stopped at step {self.probes_stopped_at}, where the gradient is not finite")
        return ", ".join(words)

    # --- Checkpoints ---------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes a checkpoint; the host waits for the device."""
        if self.saved_at == (self.epochs, self.step):
            return
        self.flush_probes()
        self.recorder.sync_logs()
        state = {
            "config": asdict(self.config),
            "model": {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "epochs": self.epochs,
            "step": self.step,
            "losses": self.losses[: self.step].cpu(),
            "correct": self.correct[: self.step].cpu(),
            "epoch_seconds": self.epoch_seconds,
            "train_seconds": self.train_seconds,
            "test_seconds": self.test_seconds,
            "probes_stopped_at": self.probes_stopped_at,
        }
        checkpoint.save(self.recorder.folder, state)
        self.saved_at = (self.epochs, self.step)

    def _take_over(self, path: Path, state: dict) -> bool:
        """Continues from a checkpoint. Raises CheckpointError where it is not one of this run."""
        if differ := checkpoint.differing(state, self.config):
            raise checkpoint.CheckpointError(f"{path}: of a run with other settings ({', '.join(differ)})")
        checkpoint.check_architecture(path, self.model, state["model"])
        if not 0 <= state["step"] == len(state["losses"]) == len(state["correct"]) <= len(self.losses):
            raise checkpoint.CheckpointError(f"{path}: its position does not fit its losses")
        self.model.load_state_dict(state["model"])
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, TypeError, ValueError) as error:
            raise checkpoint.CheckpointError(f"{path}: of another optimizer ({error})") from None
        self.epochs, self.step = state["epochs"], state["step"]
        self.losses[: self.step] = state["losses"].to(self.losses.device)
        self.correct[: self.step] = state["correct"].to(self.correct.device)
        self.epoch_seconds, self.train_seconds = state["epoch_seconds"], state["train_seconds"]
        self.test_seconds = state["test_seconds"]
        self.probes_stopped_at = state.get("probes_stopped_at")
        self.saved_at = (self.epochs, self.step)
        return True

    def resume(self, warn: Callable[[str], None]) -> bool:
        """Takes over the newest usable checkpoint and cuts the logs back to it; False where there is none.

        warn: is told of a newer one that is damaged. Raises CheckpointError and FolderError, and then has changed
        nothing, where there are checkpoints and none can be used, or the logs hold less than it.
        """
        folder = self.recorder.folder
        try:
            found, passed_over = checkpoint.newest(folder, self._take_over)
        except checkpoint.CheckpointError as error:
            raise checkpoint.CheckpointError(f"{error}; --fresh starts again and keeps the old folder") from None
        if not found and (folder / "summary.json").exists():
            raise checkpoint.CheckpointError(
                f"{folder / checkpoint.NEWEST}: there is no checkpoint from which the finished run could go on; "
                "--fresh starts again and keeps the old folder"
            )
        for reason in passed_over:
            warn(reason)
        steps = self.epochs * len(self.losses)
        probed = self.probes_stopped_at - 1 if self.probes_stopped_at else steps + self.step
        self.recorder.cut_back(self.epochs, steps, probed_up_to=probed)
        if passed_over:
            checkpoint.set_aside(folder)
        return bool(found)
