"""A whole training step as one CUDA graph: batch, augmentation, and every run's forward, backward and update.

The script's step is called three times to warm up and once to be captured; from then on a replay launches its kernels
without Python. Runs of a lockstep group, and the branches of a network within one, are captured on streams of their
own, forked and joined by events: their kernels are too small to fill a GPU alone.
"""

import copy
from collections.abc import Callable

import torch

from cifar_lab.networks import Branches
from cifar_lab.optimizers import OPTIMIZERS

WARM_UP = 3  # steps before the capture: cuDNN chooses its algorithms, optimizers make their state


def _state(runs) -> list:
    return [(copy.deepcopy(run.model.state_dict()), copy.deepcopy(run.optimizer.state_dict())) for run in runs]


def _restore(runs, saved: list) -> None:
    """Puts the state from before the warm-up back in place: the graph keeps addresses, so tensors are overwritten."""
    for run, (weights, optimizer) in zip(runs, saved, strict=True):
        ones = OPTIMIZERS[run.config.optimizer].ones
        run.model.load_state_dict(weights)  # copies in place
        parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
        for i, parameter in enumerate(parameters):
            before = optimizer["state"].get(i, {})
            for name, tensor in run.optimizer.state[parameter].items():
                if isinstance(tensor, torch.Tensor):
                    # SGD's first momentum is the gradient, as 0 * m + g is.
                    tensor.copy_(before[name]) if name in before else tensor.fill_(name in ones)


def _concurrent_branches(runs, concurrent: bool) -> None:
    for module in (module for run in runs for module in run.model.modules()):
        if isinstance(module, Branches):
            module.concurrent = concurrent


def capture(
    step: Callable[[Callable], None], advance: Callable[[], None], runs: list, counters: list[torch.Tensor]
) -> torch.cuda.CUDAGraph:
    """Captures one step of every run; afterwards weights, optimizers, losses and counters are what they were before.

    step: is given a context manager that takes a run's index and stands around that run's part.
    advance: moves `counters`, tensors on the device, on when every run is done with them.
    A step drops the gradients before each backward pass, and so does the graph: a replay then writes them into the
    graph's own memory instead of zeroing and adding. Raises RuntimeError if the step cannot be captured.
    """
    main = torch.cuda.Stream()
    side = [torch.cuda.Stream() for _ in runs] if len(runs) > 1 else []

    class Branch:
        """Runs one network's part beside the others."""

        def __init__(self, index: int) -> None:
            self.stream = side[index] if side else None

        def __enter__(self) -> None:
            if self.stream is not None:
                self.stream.wait_stream(main)  # fork: the batch is ready
                self.context = torch.cuda.stream(self.stream)
                self.context.__enter__()

        def __exit__(self, *error) -> None:
            if self.stream is not None:
                self.context.__exit__(*error)

    def whole_step() -> None:
        step(Branch)
        for stream in side:
            main.wait_stream(stream)  # join
        advance()

    of_runs = (tensor for run in runs for tensor in (run.losses, run.correct, *run.rates, *run.averaged.values()))
    kept = [*counters, *of_runs]
    before = [tensor.clone() for tensor in kept]
    saved = _state(runs)
    failure: BaseException | None = None
    main.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(main):
            for _ in range(WARM_UP):
                for counter, value in zip(counters, before, strict=False):
                    counter.copy_(value)  # always the same batch: a warm-up near the epoch's end stays within it
                whole_step()
        torch.cuda.synchronize()  # the host waits, once a capture
        graph = torch.cuda.CUDAGraph()
        _concurrent_branches(runs, len(runs) == 1)
        with torch.cuda.graph(graph, stream=main):
            try:
                whole_step()
            except BaseException as error:
                failure = error
                raise
    except RuntimeError as error:
        raise failure or error from None  # the end of a capture that has failed raises an error that hides the first
    finally:
        _concurrent_branches(runs, False)
        torch.cuda.synchronize()
        _restore(runs, saved)
        for tensor, value in zip(kept, before, strict=True):
            tensor.copy_(value)
    return graph
