"""Streams, events and graphs of `torch.cuda` on the CPU, so that what a CUDA graph demands is checked without a GPU.

    with StandIn() as cuda:
        MyVGG.main(["--device", "cuda", ...])

Tensors asked for on "cuda" lie on the CPU, and work is done at once. What holds of the real thing holds here:

- A capture does nothing: what its operations have written is undone, and memory that it allocated is filled with bytes
  that are NaN as floats. A replay does the operations again on the same memory, whatever has become of the tensors that
  held it, with the plain numbers of the capture.
- Reading a tensor on the host, copying from the host, and waiting for the device fail in a capture and spoil it.
- A stream takes part in a capture once it waits for one that does, and must be waited for before its end. Work on any
  other stream is not captured, and no stream of the capture can wait for it.
- Ending a capture that has failed raises an error of its own, in which the first one is only the context.

Beyond the real thing, where it would give wrong numbers now and then, AssertionError is raised: in a capture, if work
uses memory that the work of another stream writes, or reads before it is written, and does not wait for that; outside
of one, if a stream that is entered does not wait for the one that it is entered from, or that one, afterwards, for it.
"""

from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CPU = torch.device("cpu")
NOT_PERMITTED = "CUDA error: operation not permitted when stream is capturing"
SPOILED = "CUDA error: operation failed due to a previous error during capture"
UNJOINED = "CUDA error: capturing stream has unjoined work"
ISOLATION = "CUDA error: dependency created on uncaptured work in another stream"
# What makes the host wait on a GPU: as operations, and as methods that on a CPU reach no operation.
WAITING = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "_unique2", "unique_dim"}
READING = {Tensor.cpu, Tensor.numpy, Tensor.tolist}
FROM_HOST = {torch.tensor, torch.as_tensor}
CAPTURABLE = ("rmsprop", "nadam", "radam", "adamax", "adadelta")  # modules of torch.optim that ask for the device
ALLOCATING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class Stream:
    """A queue of work. `clock` counts, for each stream, the pieces of its work that are before this one's next."""

    def __init__(self) -> None:
        self.clock: dict[Stream, int] = {self: 0}
        self.left: set[Stream] = set()  # entered from this one, which has not worked since

    def is_capturing(self) -> bool:
        capture = StandIn.current.capture
        return capture is not None and self in capture.streams

    def wait_stream(self, other: "Stream") -> None:
        capture = StandIn.current.capture
        if self.is_capturing() or other.is_capturing():
            if not other.is_capturing():
                capture.fail(RuntimeError(ISOLATION))
            capture.streams.add(self)
        self.clock |= {stream: max(n, self.clock.get(stream, 0)) for stream, n in other.clock.items()}
        self.clock[self] += 1


class Event:
    """A mark in a stream; what happens to it is written down in `StandIn.events`."""

    def __init__(self) -> None:
        self.number: int | None = None

    def record(self, stream: Stream | None = None) -> None:
        self.number = sum(what == "record" for what, _ in StandIn.current.events)
        StandIn.current.events.append(("record", self.number))

    def synchronize(self) -> None:
        StandIn.current.synchronize()
        StandIn.current.events.append(("synchronize", self.number))


class CUDAGraph:
    """The operations of a capture, and the memory that they are bound to."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.addresses: set[int] = set()  # of the memory that was there before the capture
        self.streams = 0
        self.replays = 0

    def replay(self) -> None:
        StandIn.current.before_replay(self)
        StandIn.current.work()
        with torch.no_grad(), torch._C.DisableTorchFunction():
            for call in self.calls:
                call()
        self.replays += 1


class Capture(TorchDispatchMode):
    """Writes down every operation of the capturing streams, its backward pass included."""

    def __init__(self, graph: CUDAGraph, stream: Stream) -> None:
        super().__init__()
        self.graph = graph
        self.origin = stream
        self.streams = {stream}
        self.spoiled = False
        self._before: dict[int, tuple] = {}  # address to memory from before the capture, and a copy
        self._own: dict[int, Any] = {}  # address to memory that it allocated
        self._written: dict[int, tuple[Stream, int]] = {}  # by which piece of a stream's work, last
        self._read: dict[int, dict[Stream, int]] = {}  # since then
        self._races: list[str] = []
        self._kept: list = []  # so that no address is used twice

    def fail(self, error: Exception) -> None:
        self.spoiled = True
        raise error

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        stream = StandIn.current.stream
        if stream not in self.streams:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in WAITING or (name == "index" and any(x.dtype == torch.bool for x in _tensors(args[1:]))):
            self.fail(RuntimeError(NOT_PERMITTED))
        StandIn.current.before_captured(len(self._kept))
        inputs = _tensors((args, kwargs))
        for memory in map(Tensor.untyped_storage, inputs):
            if memory.data_ptr() not in self._own and memory.data_ptr() not in self._before:
                self._before[memory.data_ptr()] = memory, memory.clone()
        # Aliases, because the memory of a tensor can be exchanged under it.
        args_then, kwargs_then = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
        try:
            result = func(*args, **kwargs)
        except IndexError:  # a real capture has no indices that could be out of range
            result = func(args[0], *tree_map_only(Tensor, _with_low_integers, args[1:]), **kwargs)
        addresses = set(map(_address, inputs))
        new = [i for i, tensor in enumerate(_tensors(result)) if _address(tensor) not in addresses]
        outputs = [_tensors(result)[i].detach() for i in new]
        self._own |= {_address(tensor): tensor.untyped_storage() for tensor in outputs}

        def again() -> None:
            results = func(*args_then, **kwargs_then)
            for i, output in zip(new, outputs, strict=True):
                output.copy_(_tensors(results)[i])

        written = [
            args[i] if i < len(args) else kwargs.get(argument.name)
            for i, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if (new and name not in ALLOCATING) or written:  # else a view, or memory of whatever content
            self.graph.calls.append(again)
            self._in_order(stream, name, inputs, [*outputs, *_tensors(written)])
        self._kept.append((args_then, kwargs_then, outputs))
        return result

    def _in_order(self, stream: Stream, name: str, read: list[Tensor], written: list[Tensor]) -> None:
        """Notes one piece of work, and whether it comes after those that it depends on."""
        stream.clock[stream] += 1
        writes = set(map(_address, written))
        for address in writes.union(map(_address, read)):
            depends = [self._written[address]] if address in self._written else []
            if address in writes:
                depends += self._read.pop(address, {}).items()
                self._written[address] = stream, stream.clock[stream]
            else:
                self._read.setdefault(address, {})[stream] = stream.clock[stream]
            if any(stream.clock.get(other, 0) < piece for other, piece in depends):
                self._races.append(name)

    def end(self) -> None:
        """Undoes what the operations did, and says whether they are a graph."""
        for memory, content in self._before.values():
            memory.copy_(content)
        for memory in self._own.values():
            memory.fill_(0xFF)
        self.graph.addresses, self.graph.streams = set(self._before), len(self.streams)
        if self.spoiled:
            raise RuntimeError(SPOILED)
        if any(self.origin.clock.get(stream, 0) < stream.clock[stream] for stream in self.streams):
            raise RuntimeError(UNJOINED)
        assert not self._races, f"streams that do not wait for one another use the same memory: {self._races[:5]}"


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested lists that have memory."""
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor) and x.untyped_storage().nbytes()]


def _with_low_integers(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.dtype == torch.int64 else tensor


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Graph:
    """`torch.cuda.graph`, which leaves the stream as it is where the end of the capture raises, as that one does."""

    def __init__(self, graph: CUDAGraph, stream: Stream | None = None) -> None:
        self._graph, self._stream = graph, stream or Stream()

    def __enter__(self) -> None:
        cuda = StandIn.current
        cuda.synchronize()
        cuda.capture = Capture(self._graph, self._stream)
        self._context = torch.cuda.stream(self._stream)
        self._context.__enter__()
        cuda.capture.__enter__()

    def __exit__(self, *error) -> None:
        cuda = StandIn.current
        cuda.capture.__exit__(*error)
        try:
            cuda.capture.end()
            self._context.__exit__(*error)
        finally:
            cuda.capture = None
        if error[0] is None:
            cuda.graphs.append(self._graph)


class _OnStream:
    """`torch.cuda.stream`."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        cuda = StandIn.current
        self._before, self._eager = cuda.stream, cuda.capture is None
        if self._eager:
            waits = self._stream.clock.get(self._before, 0) >= self._before.clock[self._before]
            assert waits, "a stream does not wait for the one around it"
        cuda.streams |= {self._before, self._stream}
        cuda.stream = self._stream

    def __exit__(self, *error) -> None:
        StandIn.current.stream = self._before
        if self._eager:
            self._before.left.add(self._stream)


class StandIn(TorchFunctionMode):
    """PyTorch finds a GPU while this is entered."""

    current: "StandIn"  # the one that is entered

    def __init__(self) -> None:
        super().__init__()
        self.stream = Stream()
        self.streams = {self.stream}
        self.capture: Capture | None = None
        self.graphs: list[CUDAGraph] = []  # captured
        self.events: list[tuple[str, int]] = []
        self.before_replay: Callable[[CUDAGraph], Any] = lambda graph: None
        self.before_captured: Callable[[int], Any] = lambda number: None  # operation of a capture, from 0

    @property
    def replays(self) -> list[int]:
        """Of each graph."""
        return [graph.replays for graph in self.graphs]

    def synchronize(self, device: Any = None) -> None:
        if self.capture is not None:
            self.capture.fail(RuntimeError(NOT_PERMITTED))
        done = {stream: stream.clock[stream] for stream in self.streams}
        for stream in self.streams:
            stream.clock |= done

    def work(self) -> None:
        """Notes work outside of a capture."""
        left = self.stream.left
        late = [stream for stream in left if self.stream.clock.get(stream, 0) < stream.clock[stream]]
        assert not late, "a stream does not wait for one that was entered from it"
        left.clear()
        self.stream.clock[self.stream] += 1

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        devices = [_device(x) for x in (*args, *kwargs.values())]
        if self.capture is None:
            self.work()
        elif self.stream.is_capturing():
            reads = func in READING or (func is Tensor.to and CPU in devices)
            if reads or (func in FROM_HOST and torch.device("cuda") in devices):
                self.capture.fail(RuntimeError(NOT_PERMITTED))
        return func(*map(_on_cpu, args), **{name: _on_cpu(x) for name, x in kwargs.items()})

    def __enter__(self) -> "StandIn":
        StandIn.current = self
        autocast = torch.autocast
        # As attributes these modules are hidden.
        optimizers = [import_module(f"torch.optim.{name}") for name in CAPTURABLE]
        self._stack = ExitStack()
        for owner, name, value in (
            (torch.cuda, "Stream", Stream),
            (torch.cuda, "Event", Event),
            (torch.cuda, "CUDAGraph", CUDAGraph),
            (torch.cuda, "graph", _Graph),
            (torch.cuda, "stream", _OnStream),
            (torch.cuda, "current_stream", lambda device=None: self.stream),
            (torch.cuda, "synchronize", self.synchronize),
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "get_device_name", lambda device=None: "stand-in"),
            (torch.cuda, "get_device_capability", lambda device=None: (9, 0)),
            (torch.cuda, "is_current_stream_capturing", lambda: self.stream.is_capturing()),
            (torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda")),
            (torch.accelerator, "current_stream", lambda device=None: self.stream),
            (torch, "autocast", lambda device, *more, **named: autocast(_on_cpu(device), *more, **named)),
            *((module, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"]) for module in optimizers),
        ):
            self._stack.enter_context(mock.patch.object(owner, name, value))
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self._stack.close()


def _device(x: Any) -> torch.device | None:
    if isinstance(x, str) and x.partition(":")[0] in ("cpu", "cuda"):
        x = torch.device(x)
    return torch.device(x.type) if isinstance(x, torch.device) else None


def _on_cpu(x: Any) -> Any:
    """The CPU in the place of a CUDA device; anything else as it is."""
    return type(x)("cpu") if _device(x) == torch.device("cuda") else x
