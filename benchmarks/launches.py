"""Recording of the launches of a GPU program on a machine without a GPU.

Tensors of the meta device, which have shapes but no memory, appear to Python code as tensors on a GPU. The
code for GPUs runs as usual: the choice of backends, the Triton functions, the plans of the scans, autograd,
the optimizer. Launches are recorded instead of executed.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from itertools import count
from types import CodeType, FrameType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dmm_fast import _extension, triton
from dmm_fast.cuda import devices
from dmm_fast.ops import _backends, _registry
from dmm_fast.ops._layout import bound_sizes, shape_of
from dmm_fast.ops.schema import CLIPPED_ADAM, OPS, OTHERS

FREE = frozenset(
    {
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
        *("_unsafe_view", "lift_fresh", "resize_", "set_", "is_same_size", "record_stream"),
    }
)
"""Operators of torch that launch nothing; views are excluded separately."""

SEVERAL = {"constant_pad_nd": 2, "slice_backward": 2, "select_backward": 2, "eye": 2}
"""Operators of torch with several launches: they fill a tensor and then write a part of it."""

COPIED = {
    "_launch_combiner_scan": ("base", "b_z"),
    "_launch_combiner_scan_backward": ("g",),
}
"""Arguments that the compiled library copies if they are not contiguous."""

PASSED_OVER = frozenset({"run", "launch", "launch_rows", "launch_tiles", "launch_wide", "__torch_function__"})
"""Helper functions that launch on behalf of their caller; the caller is recorded instead."""

ADAM_TENSORS = 64
"""Parameters per launch of Adam (``csrc/cuda/clipped_adam.h``)."""

GPU = torch.device("cuda", 0)
_META = torch.device("meta")
_LAUNCH = "_launch_"
BACKWARD = torch.autograd.graph._engine_run_backward.__code__
_device_of: Callable[[Tensor], torch.device] = torch._C.TensorBase.device.__get__


class Launch(NamedTuple):
    """A kernel, a copy or a fill.

    Attributes:
        part: the named part of the program; empty for other parts.
        op: the op of :mod:`dmm_fast.ops` that launches it; empty if there is none.
        function: the innermost calling function of ``dmm_fast`` or Pyro, or the node of autograd.
        kernel: the name of the kernel, or the operator of torch.
        by: ``"triton"``, ``"cuda"`` (the compiled library) or ``"torch"``.
        stream: 0 for the initial stream. The stream of a backward pass is that of its call; on a GPU,
            autograd uses the stream of the forward pass.
    """

    part: str
    op: str
    function: str
    kernel: str
    by: str
    stream: int


class Recorder(TorchDispatchMode):
    """Records launches; tensors have shapes only.

    Args:
        parts: names of parts of the program by the code of their functions; the outermost part is recorded.
    """

    def __init__(self, parts: Mapping[CodeType, str]) -> None:
        super().__init__()
        # As with fake tensors, keeps torch from initialising CUDA when it makes a tensor there.
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE
        self.launches: list[Launch] = []
        self.is_capturing = False
        self._parts = parts
        self._ops: list[str] = []
        self._streams = count(1)
        self._stream = 0
        self._shows_meta = False
        rows = [(op.name, op.stem, s) for op in OPS.values() for s in op.signatures]
        rows.append((CLIPPED_ADAM.name, CLIPPED_ADAM.name, CLIPPED_ADAM))
        self._routes = {s.name: _registry._router(op, stem, s, GPU.type) for op, stem, s in rows}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.partition("::")[2]
        if func.namespace == "dmm_fast":
            return self._compute(name, func, args, kwargs)
        with self:
            made = func.decompose(*args, **kwargs) if func.namespace == "aten" else NotImplemented
        if made is not NotImplemented:
            return made
        if "device" in kwargs:
            kwargs["device"] = _on_meta(kwargs["device"])
        self._shows_meta = True  # torch computes shapes in Python too
        try:
            made = func(*args, **kwargs)
        finally:
            self._shows_meta = False
        for _ in range(_count(func, name, args, made)):
            self.add("torch", str(func).removeprefix("aten.").removesuffix(".default"))
        return made

    def add(self, by: str, kernel: str) -> None:
        """Record a launch."""
        part, function = self._place()
        self.launches.append(
            Launch(part, self._ops[-1] if self._ops else "", function, kernel, by, self._stream)
        )

    def device(self, tensor: Tensor) -> torch.device:
        """The device of a tensor as it appears to Python code."""
        device = _device_of(tensor)
        return GPU if device == _META and not self._shows_meta else device

    def new_stream(self, *args: Any, **kwargs: Any) -> "Stream":
        """Make a stream, with the arguments of ``torch.cuda.Stream``."""
        return Stream(next(self._streams))

    def current_stream(self, device: Any = None) -> "Stream":
        """The current stream."""
        return Stream(self._stream)

    @contextmanager
    def on_stream(self, stream: "Stream | None") -> Iterator[None]:
        """Make ``stream`` the current stream."""
        before = self._stream
        self._stream = before if stream is None else stream.number
        try:
            yield
        finally:
            self._stream = before

    def _compute(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Compute an op of ``dmm_fast`` by its functions for a GPU."""
        if name.startswith(_LAUNCH):
            with self:
                return self._launch(name, args)
        if name not in self._routes:
            return func(*args, **kwargs)  # queries of the planner, which have no tensors
        self._ops.append(name)
        try:
            with self:
                return self._routes[name](*args, **kwargs)
        finally:
            self._ops.pop()

    def _launch(self, name: str, args: Any) -> Any:
        """Record the launches of the compiled library, and make its results."""
        kernel = name.removeprefix(_LAUNCH)
        if kernel == CLIPPED_ADAM.name:
            for _ in range(0, len(args[0]), ADAM_TENSORS):
                self.add("cuda", kernel)
            return None
        signature = OTHERS[name]
        given = dict(zip((argument.name for argument in signature.flat_arguments), args, strict=True))
        for argument in COPIED.get(name, ()):
            given[argument].contiguous()
        self.add("cuda", kernel)
        sizes = bound_sizes(signature, args)
        if "Z" in sizes:
            sizes["(2Z)"] = 2 * sizes["Z"]
        made = [
            args[0].new_empty(shape_of(result, sizes) if given.get(f"keep_{result.name}", True) else (0,))
            for result in signature.flat_results
        ]
        return made[0] if len(made) == 1 else tuple(made)

    def _place(self) -> tuple[str, str]:
        """The current part of the program, and the innermost function of ``dmm_fast`` or Pyro."""
        part = function = ""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            module = frame.f_globals.get("__name__", "")
            if not function and frame.f_code is BACKWARD:
                node = torch._C._current_autograd_node()
                function = "a sum of gradients" if node is None else node.name()
            elif (
                not function
                and module.startswith(("dmm_fast.", "pyro."))
                and frame.f_code.co_name not in PASSED_OVER
            ):
                function = f"{module}.{frame.f_code.co_name}".removeprefix("dmm_fast.")
            part = self._parts.get(frame.f_code, part)
            frame = frame.f_back
        return part, function


class Stream:
    """Stand-in for a CUDA stream or event that needs no synchronisation."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.device = GPU

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.number == self.number

    def __hash__(self) -> int:
        return hash(self.number)

    def _pass(self, *args: Any) -> None:
        """Wait for nothing."""

    wait_stream = wait_event = record = wait = synchronize = _pass

    def record_event(self, event: "Stream | None" = None) -> "Stream":
        """Record an event on this stream."""
        return event or Stream(self.number)


def missing() -> str | None:
    """The reason why launches cannot be recorded here; None if they can."""
    if find_spec("triton") is None:
        return "recording needs Triton's functions, and triton is not installed: pip install triton"
    if triton.INTERPRETED:
        return "recording needs compiled Triton functions, and TRITON_INTERPRET=1 interprets them"
    if _extension.missing is not None:
        return f"the compiled library, which plans the scans, is missing: {_extension.missing}"
    return None


@contextmanager
def recorded(parts: Mapping[CodeType, str]) -> Iterator[Recorder]:
    """Run the block as on a GPU: tensors of the meta device appear as CUDA tensors.

    Ops are computed by the backends of a GPU with the compiled library. Tensors and modules must be on the
    meta device; within the block, new ones may be made on ``"cuda"``.

    Args:
        parts: names of parts of the program, for :class:`Recorder`.

    Yields:
        the recorder.

    Raises:
        RuntimeError: launches cannot be recorded here; see :func:`missing`.
    """
    if why := missing():
        raise RuntimeError(why)
    from triton.runtime.jit import JITFunction

    with ExitStack() as stack:

        def replace(owner: Any, **values: Any) -> None:
            for name, value in values.items():
                stack.enter_context(patch.object(owner, name, value, create=owner is Tensor))

        replace(triton, missing=None)
        order = {**_backends.PREFERENCE, "cuda": ("cuda", "triton", "reference")}
        replace(_backends, PREFERENCE=order)
        held = {op: dict(by_backend) for op, by_backend in _backends._implementations.items()}
        stack.enter_context(patch.dict(_backends._implementations, held))
        stems = {op.name: op.stem for op in OPS.values()} | {CLIPPED_ADAM.name: CLIPPED_ADAM.name}
        for op, stem in stems.items():
            _registry.register_compiled(op, stem, held[op]["cpp"].compute)
        recorder = Recorder(parts)

        def run(kernel: Any, *args: Any, warmup: bool = False, **kwargs: Any) -> None:
            if not warmup:
                recorder.add("triton", kernel.__name__)

        replace(JITFunction, run=run)
        replace(devices, cuda_device=lambda index: devices.H100)
        replace(
            torch.cuda,
            device=lambda device: nullcontext(),
            current_device=lambda: GPU.index,
            is_initialized=lambda: True,
            is_current_stream_capturing=lambda: recorder.is_capturing,
            get_rng_state=lambda device: torch.empty(0, dtype=torch.uint8),
            set_rng_state=lambda state, device: None,
            Stream=recorder.new_stream,
            Event=lambda **options: Stream(),
            stream=recorder.on_stream,
            current_stream=recorder.current_stream,
        )
        to = Tensor.to
        replace(
            Tensor,
            device=property(recorder.device),
            is_cuda=property(lambda tensor: recorder.device(tensor).type == "cuda"),
            is_meta=property(lambda tensor: recorder.device(tensor).type == "meta"),
            get_device=lambda tensor: recorder.device(tensor).index,
            data_ptr=_address,
            record_stream=lambda tensor, stream: None,
            to=lambda tensor, *args, **kwargs: to(
                tensor, *map(_on_meta, args), **{name: _on_meta(value) for name, value in kwargs.items()}
            ),
        )
        stack.enter_context(recorder)
        yield recorder


def _count(func: Any, name: str, args: Any, made: Any) -> int:
    """The number of launches of an operator of torch; none if it writes no element on the GPU."""
    written = tree_leaves(args if made is None else made)
    on_gpu = any(isinstance(t, Tensor) and _device_of(t) == _META and t.numel() for t in written)
    return SEVERAL.get(name, 1) if on_gpu and not func.is_view and name not in FREE else 0


def _address(tensor: Tensor) -> int:
    """A unique address for the memory of a tensor."""
    first: int = tensor.untyped_storage()._cdata << 40
    return first + int(tensor.storage_offset()) * tensor.itemsize


def _on_meta(value: Any) -> Any:
    """``value``, with the meta device in place of a CUDA device."""
    return _META if isinstance(value, torch.device | str) and str(value).startswith("cuda") else value
