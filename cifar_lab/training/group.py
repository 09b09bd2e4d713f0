"""Runs in lockstep: networks that differ in one setting take each step together, on the same batch.

A script iterates over `epochs` and `batches` and calls its own training step; these iterators resume, write logs and
checkpoints, and know the device. Each run has a position of its own. A run that is ahead (its checkpoint is newer, or
it was trained alone before) waits until the others have caught up.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor, nn

from cifar_lab.measures.evaluation import evaluate
from cifar_lab.training.capture import capture
from cifar_lab.training.console import Console, Stopped, StopSignals, Stopwatch, duration, result_text
from cifar_lab.training.device import Device, matmul_rate
from cifar_lab.training.loader import Batches, Loader
from cifar_lab.training.run import TrainingRun
from cifar_lab.training.threads import SideBySide, use
from cifar_lab.training.turns import Turns

TrainingStep = Callable[[TrainingRun, Tensor, Tensor], tuple[Tensor, Tensor]]
READ_SECONDS = 1.0  # between two looks of the host at the losses
IN_FLIGHT = 64  # steps between two marks in the device's queue; the host is at most four marks ahead
ESTIMATE_AFTER, ESTIMATE_SECONDS = 20, 5.0  # steps after which the time is estimated, or seconds if they take longer


class Batch:
    """One step's batch, the same for every run that takes it."""

    def __init__(self, loader: Loader, epoch: int, index: int, runs: list[TrainingRun]) -> None:
        self.index = index  # within the epoch, from 0
        self.step = (epoch - 1) * loader.steps + index + 1  # over the whole run, from 1
        self.size = loader.size(index)
        self.runs = runs
        self.to_probe: Iterable[TrainingRun] = ()  # before the update; walked over once
        self._loader = loader

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor]:
        return self._loader.batch(self.size)

    @property
    def images(self) -> Tensor:
        """(size, 3, 32, 32), normalized."""
        return self._tensors[0]

    @property
    def labels(self) -> Tensor:
        """(size,) int64."""
        return self._tensors[1]


class _EvaluationStopped(Exception):
    """A signal has come between two batches of test images."""


def _side_by_side(device: Device, runs: list[TrainingRun]) -> SideBySide:
    """On a GPU the host takes the steps one after the other, and so it does with PyTorch's own dropout: its masks come
    from one generator, so that they depend on the order."""
    modules = (module for run in runs for module in run.model.modules())
    alone = device.torch.type != "cpu" or any(isinstance(m, nn.modules.dropout._DropoutNd) for m in modules)
    return SideBySide(1 if alone else device.threads, [run.threads for run in runs])


class Lockstep:
    """A group of runs that share seed, data and batches."""

    def __init__(
        self, runs: list[TrainingRun], loader: Loader, console: Console, stop: StopSignals, *,
        epochs: int, checkpoint_seconds: float, probe_every: int = 0, keep_every: int = 0,
        later_groups: int = 0,
    ) -> None:  # fmt: skip
        self.runs = runs
        self.loader = loader
        self.device = loader.device
        self._console = console
        self._stop = stop
        self._target = epochs
        self._checkpoint_seconds = checkpoint_seconds
        self._probe_every = probe_every
        self._keep_every = keep_every
        self._later_groups = later_groups  # that follow, for the estimate
        self.side_by_side = _side_by_side(self.device, runs)
        on_cpu = self.device.torch.type == "cpu"
        self._turns = Turns(self.side_by_side.workers * max((run.threads for run in runs), default=1) if on_cpu else 1)
        self._stopwatch = Stopwatch()
        self._saved = self._looked = time.monotonic()
        self._taken = 0  # steps in this process
        self._first_step = 0.0  # when the first of them was launched
        self._estimated = False

    # --- What a script iterates over --------------------------------------------------------------------------------

    def epochs(self) -> Iterator[int]:
        """The epochs still to do, from 1."""
        for run in self.runs:
            if not run.ended and run.position.epochs >= self._target:
                self._finish(run)  # killed between its last checkpoint and its summary
        self._console.start_epochs(min(self._epochs_done(), default=0), self._target)
        while waiting := self._epochs_done():
            yield min(waiting) + 1
        self._console.close()

    def _epochs_done(self) -> list[int]:
        return [run.position.epochs for run in self.runs if not run.ended]

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, from where the furthest behind of its runs stands."""
        behind = [run.position for run in self.runs if not run.ended and run.position.epochs == epoch - 1]
        start = min(position.step for position in behind)
        self._stopwatch.lap()  # from here on it is training time
        self.loader.start_epoch(epoch, start)
        self._console.start_batches(epoch, start, self.loader.steps)
        self._looked = time.monotonic()
        marks: deque = deque()
        for index in range(start, self.loader.steps):
            active = [run for run in self.runs if run.at(epoch, index)]
            if not active:  # those behind have diverged, the others are further ahead
                self.loader.advance()
                continue
            self._turns.take(self.synchronize)
            batch = Batch(self.loader, epoch, index, active)
            self._keep(active, batch.step)
            batch.to_probe = self._to_probe(active, batch.step)
            yield batch
            for run in active:
                run.position.end_step()
            self._estimate_after(epoch, index)
            self._throttle(marks, index)
            self._look(active, index + 1)
        self._console.end_batches()

    def close(self) -> None:
        """Leaves the cores to others."""
        self.side_by_side.close()
        self._turns.close()

    def synchronize(self) -> None:
        """The host waits until every step that was asked for is taken."""
        self.side_by_side.wait()
        self.device.synchronize()

    def _throttle(self, marks: deque, index: int) -> None:
        """Keeps the host at most four marks ahead of a GPU."""
        if self.device.torch.type == "cuda" and index % IN_FLIGHT == 0:
            marks.append(torch.cuda.Event())
            marks[-1].record()
            if len(marks) > 4:
                marks.popleft().synchronize()  # the host waits, while the device has 3 marks to go

    def _look(self, active: list[TrainingRun], step: int) -> None:
        """Reads the losses once a second, and writes checkpoints when they are due or a signal has come."""
        now = time.monotonic()
        save = now - self._saved >= self._checkpoint_seconds or self._stop.received is not None
        if save or now - self._looked >= READ_SECONDS:
            self._read(active, step)
            self._looked = now
        if save:
            self._save(active)

    def accelerate(self, training_step: TrainingStep) -> Callable[[Batch], None]:
        """The training step for every run of a batch: replayed from a CUDA graph if the device has them, on a CPU
        side by side."""
        graphs: dict[tuple[int | str, ...], torch.cuda.CUDAGraph | None] = {}

        def step(run: TrainingRun, images: Tensor, labels: Tensor, index: Tensor) -> None:
            run.set_rates()
            loss, correct = training_step(run, images, labels)
            if run.average:
                run.average.update()
            run.losses.index_copy_(0, index, loss.float().view(1))
            run.correct.index_copy_(0, index, correct.view(1))

        def step_at(run: TrainingRun, number: int, images: Tensor, labels: Tensor, index: Tensor) -> None:
            run.count_steps(number - 1)
            step(run, images, labels, index)

        def capturable(runs: list[TrainingRun], batch_size: int, branch: Callable) -> None:
            images, labels = self.loader.batch(batch_size)
            for i, run in enumerate(runs):
                with branch(i):
                    step(run, images, labels, self.loader.index.view(1))

        def captured(batch: Batch) -> torch.cuda.CUDAGraph | None:
            graphs.clear()  # neither runs that parted, or met, nor sizes come back: the last graph is never used again
            try:
                return capture(
                    partial(capturable, batch.runs, batch.size), self.loader.advance, batch.runs,
                    [self.loader.index, self.loader.step],
                )  # fmt: skip
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.device = replace(self.device, cuda_graph=False)
                self._console.say(f"no CUDA graph, training continues without one: {str(error).splitlines()[0]}")
                return None
            finally:
                self._stopwatch.lap()  # not training time

        def update(batch: Batch) -> None:
            graph = None
            if self.device.cuda_graph and batch.size == self.loader.batch_size:
                key = (self.loader.image_size, *(run.label for run in batch.runs))
                if key not in graphs:
                    graphs[key] = captured(batch)
                graph = graphs[key]
            if graph is not None:
                graph.replay()
            else:
                if self.side_by_side.workers > 1:
                    use(1)  # the cores are busy with the steps before; the images do not depend on the threads
                images, labels, index = batch.images, batch.labels, self.loader.index.clone().view(1)
                for run in batch.runs:
                    self.side_by_side.start(run, partial(step_at, run, batch.step, images, labels, index))
                self.loader.advance()

        return update

    def evaluate(self, epoch: int) -> None:
        """Loss and accuracy, on test or validation images, of every run that has trained the epoch; writes its rows.
        Not training time."""
        steps = self.loader.steps
        trained = [run for run in self.runs if run.at(epoch, steps)]
        if trained:
            self._read(trained, steps)  # the host waits, once an epoch: here its training time ends
        trained = [run for run in trained if not run.ended]
        totals: dict[TrainingRun, tuple[Tensor, Tensor, Tensor]] = {}
        for run in trained:
            last = epoch == self._target
            self.side_by_side.start(run, partial(self._test, run, totals, self.loader.held_out_batches(), last))
        self.side_by_side.wait()
        if len(totals) < len(trained):
            self._save(trained)
        images = len(self.loader.held_out_labels)
        tested = [totals[run] for run in trained]
        means = [(float(loss) / images, int(right.trace()) / images) for loss, right, _ in tested]  # the host waits
        passed = self._stopwatch.lap()
        ended = []
        for run, (loss, share_right), (*_, predictions) in zip(trained, means, tested, strict=True):
            if not self.loader.validates:
                run.predictions = predictions
            run.test_seconds += passed / len(trained)
            if np.isfinite(loss):
                ended.append((run.label, run.end_epoch(loss, 100 * share_right)))
            else:
                self._diverged(run, steps, f"{run.recorder.held_out} loss")
        if ended:
            self._console.end_epoch(epoch, self._target, ended)
        for run in trained:
            if not run.ended and run.position.epochs >= self._target:
                self._finish(run)
        if time.monotonic() - self._saved >= self._checkpoint_seconds or self._stop.received is not None:
            self._save(trained)

    # --- Internals ---------------------------------------------------------------------------------------------

    def _share_time(self, runs: list[TrainingRun]) -> None:
        """Adds the training time since the last lap to the runs, in equal parts."""
        passed = self._stopwatch.lap()
        for run in runs:
            run.epoch_seconds += passed / len(runs)

    def _to_probe(self, runs: list[TrainingRun], step: int) -> Iterator[TrainingRun]:
        """The runs, if the step (from 1) is one to probe. What a probe takes is not training time."""
        if self._probe_every and step % self._probe_every == 0:
            self.synchronize()  # the host waits, before each probe
            self._share_time(runs)
            for run in runs:
                use(run.threads)
                run.count_steps(step - 1)
                yield run
            self._stopwatch.lap()

    def _keep(self, runs: list[TrainingRun], step: int) -> None:
        """Keeps checkpoints before the step (from 1), if it is one to keep them at. Not training time."""
        if self._keep_every and (step - 1) % self._keep_every == 0:
            self.synchronize()  # the host waits, before each checkpoint that is kept
            self._share_time(runs)
            for run in runs:
                run.keep()
            self._stopwatch.lap()

    def _read(self, runs: list[TrainingRun], step: int) -> None:
        """Reads the losses of the epoch so far: shares the time among the runs, moves the bar, ends diverged runs."""
        self.side_by_side.wait()
        losses = torch.stack([run.losses[:step] for run in runs]).cpu().numpy()  # the host waits
        self._share_time(runs)
        seen = min(step * self.loader.batch_size, len(self.loader.images))
        speed = seen / max(float(np.mean([run.epoch_seconds for run in runs])), 1e-9)
        recent = " ".join(f"{np.mean(row[-50:]):.3f}" for row in losses)
        right = " ".join(f"{100 * int(run.correct[:step].sum()) / seen:.1f}%" for run in runs)
        self._console.batches_at(step, f"loss {recent}, accuracy {right}, {speed:.0f} images/s")
        for run, finite in zip(runs, np.isfinite(losses), strict=True):
            if not finite.all():
                self._diverged(run, int(np.argmin(finite)), "training loss")

    def _test(
        self, run: TrainingRun, totals: dict[TrainingRun, tuple[Tensor, Tensor, Tensor]], images: Batches,
        last: bool = False,
    ) -> None:  # fmt: skip
        """Puts the sum of the losses, the confusion matrix and the predictions, on the device, into `totals`.

        last: after the last epoch, when BatchNorm's statistics are estimated again if the run has that. Stops between
        batches if a signal has come, and then puts nothing there.
        """

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in images:
                if self._stop.received is not None:
                    raise _EvaluationStopped
                if self.side_by_side.workers == 1:
                    self._turns.take(lambda: None)
                yield batch

        if last and run.config.bn_images:
            run.estimate_statistics()
        run.model.eval()
        with suppress(_EvaluationStopped):
            totals[run] = evaluate(run.predictor(), batches(), run.criterion)
        run.model.train()

    def _diverged(self, run: TrainingRun, index: int, which: str) -> None:
        """Ends a run at the step of the epoch (from 0) whose loss is not finite."""
        step = run.truncate_log(index)
        self._console.say(f"{run.prefix}diverged: the {which} at step {step} is not finite")
        self._finish(run, diverged_at_step=step)
        self._stopwatch.lap()

    def _finish(self, run: TrainingRun, diverged_at_step: int | None = None) -> None:
        use(self.device.threads)
        if self.loader.validates and diverged_at_step is None:  # only now: nothing can be chosen by it
            totals: dict[TrainingRun, tuple[Tensor, Tensor, Tensor]] = {}
            self._test(run, totals, self.loader.test_batches())
            if not totals:
                self._save(self.runs)  # and the program ends
            loss, confusion, run.predictions = totals[run]
            images = len(self.loader.test_labels)
            run.tested = float(loss) / images, 100 * int(confusion.trace()) / images  # the host waits
            run.test_seconds += self._stopwatch.lap()
        summary = run.finish(matmul_rate(self.device), diverged_at_step)
        self._console.say(run.prefix + result_text(summary))

    def _save(self, runs: list[TrainingRun]) -> None:
        """Checkpoints of the runs that continue; ends the program if a signal asked for it. Not training time."""
        for run in runs:
            if not run.ended:
                run.save()  # the host waits
        self._saved = time.monotonic()
        self._stopwatch.lap()
        if self._stop.received is not None:
            self._console.close()
            raise Stopped(self._stop.received)

    def _estimate_after(self, epoch: int, index: int) -> None:
        """Says once how long all of it will take, and names smaller presets if that is long."""
        self._taken += 1
        if self._taken == 1:
            self._first_step = time.monotonic()
        late = self._taken > 1 and time.monotonic() - self._first_step > ESTIMATE_SECONDS
        if self._estimated or not (self._taken == ESTIMATE_AFTER or late):
            return
        self._estimated = True
        self.synchronize()  # the host waits, once
        seconds_per_step = (time.monotonic() - self._first_step) / (self._taken - 1)
        steps = (
            self.loader.steps * (self._target - epoch + 1)
            - index
            + self._later_groups * self.loader.steps * self._target
        )
        # An evaluation is a forward pass, about a third of a training step.
        seconds = seconds_per_step * steps * (1 + len(self.loader.held_out_labels) / len(self.loader.images) / 3)
        self._console.say(f"about {duration(seconds)} to go, from the first {self._taken} steps")
        if seconds > 3600 and self.device.torch.type == "cpu":
            self._console.say("a GPU, or --preset quick (minutes) or --preset laptop (overnight), is faster")
