"""The device: which one, in what precision, and how fast its matrix product is."""

import ctypes
import functools
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_lab import openmp
from cifar_lab.settings import Settings
from cifar_lab.training.threads import default_threads

NONE: Mapping[str, Tensor] = MappingProxyType({})


class DeviceError(Exception):
    """The device or precision that was asked for is not available here; the text says which and why."""


@dataclass(frozen=True)
class Device:
    """Where and how a run computes. Type and precision identify a run; the rest changes rounding only."""

    torch: torch.device
    precision: str  # fp32, tf32 or bf16
    usual: str  # what auto gives
    threads: int  # of the CPU
    channels_last: bool = True
    cuda_graph: bool = False
    note: str = ""  # what is not as one would expect; printed once

    def forward(self, model: nn.Module, images: Tensor, others: Mapping[str, Tensor] = NONE) -> Tensor:
        """A network's logits in fp32: computed in bf16 over fp32 master weights, or in fp32 throughout.

        others: weights and buffers in place of its own, by name. A pass in train mode changes those in place too.

        bf16 is what autocast computes, but for the number of kernels: autocast casts each weight and each gradient by
        itself, here all of them are cast at once. Its weight cache is off: in a CUDA graph it would hold tensors of
        another capture.
        """
        if self.precision != "bf16":
            return _with(model, others, images) if others else model(images)
        shared = {id(weight): (name, weight) for name, weight in _of_convolutions_and_linear_layers(model)}
        weights = {name: others.get(name, weight) for name, weight in shared.values()}
        low = dict(zip(weights, _ToBf16.apply(*weights.values()) if weights else (), strict=True))
        with torch.autocast(self.torch.type, torch.bfloat16, cache_enabled=False):
            return _with(model, {**others, **low}, images).float()

    def place(self, module_or_images):
        """A module, or images (B, C, H, W), on the device in its memory format."""
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        return module_or_images.to(self.torch, memory_format=memory_format)

    def synchronize(self) -> None:
        """The host waits for the device."""
        if self.torch.type != "cpu":
            getattr(torch, self.torch.type).synchronize()

    def describe(self) -> str:
        """The device in words, for logs and tables."""
        if self.torch.type == "cuda":
            return f"cuda: {torch.cuda.get_device_name()}"
        name = platform.processor() or platform.machine()
        if os.path.exists("/proc/cpuinfo"):
            with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
                name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
        return f"{self.torch.type}: {name}, {self.threads} thread{'s' * (self.threads > 1)}"

    @property
    def evaluation_batch(self) -> int:
        """Images per forward pass of evaluation: many to keep a GPU busy, few enough for a CPU's cache."""
        return 2_500 if self.torch.type == "cuda" else 500


def _with(model: nn.Module, others: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """A network's output with other tensors in place of its own.

    One that it has under several names is replaced under the first of them: what `functional_call` itself ties, it
    would put back in the wrong order where the names are of one module, and refuse where `others` has several of them.
    """
    replaced: dict[int, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in others:
            replaced.setdefault(id(tensor), others[name])
    given = {
        f"{prefix}.{name}" if prefix else name: replaced[id(tensor)]
        for prefix, module in model.named_modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if id(tensor) in replaced
    }
    return torch.func.functional_call(model, given, (images,), tie_weights=False)


def _of_convolutions_and_linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for prefix, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield from module.named_parameters(prefix, recurse=False)


class _ToBf16(torch.autograd.Function):
    """Casts a list of fp32 tensors to bf16, and their gradients back, in a kernel or two instead of one each."""

    @staticmethod
    def forward(ctx, *weights: Tensor) -> tuple[Tensor, ...]:
        low = [torch.empty_like(weight, dtype=torch.bfloat16) for weight in weights]
        torch._foreach_copy_(low, list(weights))
        return tuple(low)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, ...]:
        high = [torch.empty_like(gradient, dtype=torch.float32) for gradient in gradients]
        torch._foreach_copy_(high, list(gradients))
        return tuple(high)


def choose(settings: Settings, begun_in: str | None = None) -> Device:
    """The device that the flags ask for. Raises DeviceError.

    begun_in: the precision of runs to be continued, which auto keeps. Sets what holds for the whole process: PyTorch's
    precision, determinism and number of threads, on a CPU also how memory is kept.
    """
    kind, precision, note = settings.device, settings.precision, ""
    threads = settings.threads or default_threads()
    torch.set_num_threads(threads)
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = kind.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"--device {settings.device}: PyTorch finds no CUDA device here; use --device cpu or auto")
    if number and int(number) >= torch.cuda.device_count():
        raise DeviceError(f"--device {settings.device}: the devices here are cuda:0 to {torch.cuda.device_count() - 1}")
    if number:
        torch.cuda.set_device(int(number))  # of everything that names none, streams and graphs too
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("--device mps: PyTorch finds no Apple GPU here; use --device cpu or auto")
    new_gpu = kind == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
    if precision == "tf32" and not new_gpu:
        raise DeviceError(f"--precision tf32: needs a CUDA device of compute capability 8.0 or newer, not {kind}")
    if precision == "bf16" and not new_gpu and kind != "cpu":
        raise DeviceError("--precision bf16: needs a CUDA device of compute capability 8.0 or newer, or a CPU")
    if kind == "cpu":
        _keep_freed_memory()
        if precision == "auto":
            usual = begun_in or ("bf16" if bf16_pays() else "fp32")
        else:  # by what the processor has, so that the name of a folder does not depend on a measurement
            usual = "bf16" if has_bf16() else "fp32"
        note = openmp.complaint()
    else:
        usual = "bf16" if new_gpu else "fp32"
    if precision == "auto":
        precision = usual
        if kind == "cuda" and not new_gpu:
            note = f"{torch.cuda.get_device_name()} has no bf16 arithmetic: training in fp32"
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = not settings.deterministic
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Max-pooling has no deterministic flag of its own: PyTorch warns of it, tests/test_cuda.py compares two runs.
        torch.use_deterministic_algorithms(True, warn_only=True)
    return Device(
        torch.device(kind), precision, usual, threads, settings.channels_last,
        settings.cuda_graph and kind == "cuda", note,
    )  # fmt: skip


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware: AVX512_BF16, AMX, or Arm's bf16."""
    return any(name.endswith("bf16") and has for name, has in torch.cpu.get_capabilities().items())


@functools.cache
def bf16_pays(seconds: float = 0.5) -> bool:
    """Whether this processor trains a convolution faster in bf16 than in fp32, measured within `seconds`.

    One in the middle of the networks: 3x3, 64 channels, on 32 images of 16 x 16, forward and backward, the casts of
    the weights included. The best time of each counts: what else runs on a machine can only add to it, and one thread
    waits for no other. A tenth is asked for, so that noise does not decide.
    """
    if not has_bf16():
        return False
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator()
    best = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    weights = torch.randn(64, 64, 3, 3, generator=generator).requires_grad_()
    images = torch.randn(32, 64, 16, 16, generator=generator).to(memory_format=torch.channels_last)
    stop = time.perf_counter() + seconds
    repeats = 0
    while repeats < 3 or time.perf_counter() < stop:
        repeats += 1
        for dtype in best:
            given = images.to(dtype).requires_grad_()
            start = time.perf_counter()
            F.conv2d(given, weights.to(dtype), padding=1).sum().backward()
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    torch.set_num_threads(threads)
    return best[torch.bfloat16] < 0.9 * best[torch.float32]


def _keep_freed_memory() -> None:
    """Has glibc keep the memory that a training step frees for the next one.

    By its defaults large blocks go back to the system, which hands them out again a page at a time and zeroed: up to
    15,000 page faults a step of VGG-A, a tenth to a fifth of its time.
    """
    if sys.platform == "linux":
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        with suppress(AttributeError):  # other C libraries have no mallopt
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(trim_threshold, 2**31 - 1)
            mallopt(mmap_threshold, 2**30)


@functools.cache
def matmul_rate(device: Device) -> float:
    """What `measure_matmul_rate` gives, measured once per process."""
    return measure_matmul_rate(device)


def measure_matmul_rate(device: Device, seconds: float = 0.3) -> float:
    """FLOP/s of a large square matrix product in the device's precision: the best of the repeats within `seconds`.

    The best, because it is a ceiling: what else runs on a machine can only lower it. On a CPU the product is computed
    as a matrix product and as a 1x1 convolution in turn: PyTorch has them from two libraries, of which the one for
    convolutions, which the networks use, is more than twice as fast on some processors.
    """
    n = 8192 if device.torch.type == "cuda" else 1536
    dtype = torch.bfloat16 if device.precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device.torch).to(dtype) for _ in range(2))
    ways = [lambda: a @ b]
    if device.torch.type == "cpu":
        # (6, n, 16, 16) channels-last is a with its rows as pixels, as 6 * 16 * 16 = n.
        images = a.view(6, 16, 16, n).permute(0, 3, 1, 2)
        filters = b.view(n, n, 1, 1)
        ways.append(lambda: nn.functional.conv2d(images, filters))
    rates = []
    stop = time.perf_counter() + seconds
    with torch.inference_mode():
        while len(rates) < 4 * len(ways) or time.perf_counter() < stop:
            for product in ways:
                device.synchronize()
                start = time.perf_counter()
                product()
                device.synchronize()  # the host waits: this is a measurement
                rates.append(2 * n**3 / (time.perf_counter() - start))
    return max(rates)
