"""A module run as a map of its own, apart from the model it belongs to; and its calls seen where hooks see none."""

from __future__ import annotations

import copyreg
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_lyapunov.capture.calls import Adapter
from lightning_lyapunov.engine.maps.cell import Cell, State
from lightning_lyapunov.engine.maps.weights import Holder

T = TypeVar("T", bound=nn.Module)
OnCall: TypeAlias = "Callable[[tuple[Any, ...], dict[str, Any], Any], None]"
"""Is given the arguments of a call, its keyword arguments, and what it returned."""


def undisturbed(module: nn.Module, function: Callable[[], Any]) -> Any:
    """What a function gives that runs a module, in eval mode, without a graph; module and random state are left alone.

    Args:
        module: What the function runs.
        function: Without arguments.
    """
    parts = list(module.modules())
    devices = sorted({tensor.get_device() for tensor in module.parameters() if tensor.is_cuda})
    with torch.no_grad(), torch.random.fork_rng(devices):
        if isinstance(module, torch.jit.ScriptModule):
            modes = [part.training for part in parts]
            try:
                module.eval()
                return function()
            finally:
                for part, mode in zip(parts, modes, strict=True):
                    part.training = mode
        with _attributes_kept(parts):
            module.eval()
            buffers = {f"module.{name}": buffer.clone() for name, buffer in module.named_buffers()}
            return functional_call(Holder(module), buffers, (function,))


def twin(module: T, **attributes: Any) -> T:
    """A shallow copy of a module with attributes of its own, which holds the same weights; hooks are left behind.

    Buffers can be set on it without setting the module's. Methods of the module that it keeps as attributes are those
    of the copy.
    """
    copy: Any = object.__new__(type(module))
    found = vars(module)
    vars(copy).update(
        found, _buffers=dict(module._buffers), _forward_hooks=OrderedDict(), _forward_pre_hooks=OrderedDict()
    )
    for name, value in found.items():
        if isinstance(value, types.MethodType) and value.__self__ is module:
            vars(copy)[name] = types.MethodType(value.__func__, copy)
    for name, value in attributes.items():
        setattr(copy, name, value)
    return copy


@contextmanager
def _attributes_kept(parts: Sequence[nn.Module]) -> Iterator[None]:
    found = [(part, dict(vars(part))) for part in parts]
    try:
        yield
    finally:
        for part, attributes in found:
            vars(part).clear()
            vars(part).update(attributes)


class Adapted(nn.Module):
    """A module as the cell ``(x, state) -> state`` that its adapter says it is; its weights are the module's."""

    def __init__(self, module: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.module, self.adapter = module, adapter
        self.training = module.training  # not by train(), which would be the module's business

    def forward(self, x: Tensor, state: State) -> State:
        """One step: ``x`` ``(B, ...)``, the state's parts ``(B, ...)``."""
        return self.adapter.step(self.module, x, state)


def adapted(module: nn.Module, adapter: Adapter) -> Cell:
    """What the engine measures as a cell ``(x, state) -> state``; the module in the mode in which it is measured.

    Scripted modules do not let their weights be swapped: theirs is a plain function, run in the type of its state.
    """
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        return lambda x, state: adapter.step(module, x, state)  # type: ignore[arg-type]
    return Adapted(module, adapter)


# ---------------------------------------------------------------------- cells called as cell.forward(...)


class Handle:
    """Takes a watch off again."""

    def __init__(self, undo: Callable[[], None] = lambda: None) -> None:
        self._undo = undo

    def remove(self) -> None:
        """Leave the module as it was found; a second time does nothing."""
        undo, self._undo = self._undo, lambda: None
        undo()


def watch_forward(module: nn.Module, on_call: OnCall) -> Handle:
    """See the calls of a module's forward that go past its hooks, as ``cell.forward(x, h)`` does.

    The module is of a subclass of its class meanwhile: its own attributes are untouched, and copies and pickles of it
    are of its class. Of scripted modules, which take no hooks, the calls themselves are seen. Compiled modules, and
    those with a forward of their own, are left alone.

    Args:
        module: Whose forward to watch.
        on_call: Given the arguments, the keyword arguments and what was returned, after each call.
    """
    is_compiled = module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
    if is_compiled or ("forward" in vars(module) and not isinstance(module, torch.jit.ScriptModule)):
        return Handle()
    watched: Any = type(module)
    if "_watchers" not in vars(watched):
        watched = module.__class__ = _watched(module)
    own: type[nn.Module] = watched._own
    watched._watchers.append(on_call)

    def undo() -> None:
        watched._watchers.remove(on_call)
        if not watched._watchers and type(module) is watched:
            module.__class__ = own

    return Handle(undo)


def _watched(module: nn.Module) -> type[nn.Module]:
    """A class for a module, of which it alone tells its watchers."""
    own, watchers, is_scripted = type(module), list[OnCall](), isinstance(module, torch.jit.ScriptModule)
    hooked = list[bool]()  # one entry while a call that hooks see is on its way to forward

    def tell(*call: Any) -> None:
        for on_call in [] if torch.compiler.is_compiling() else watchers:
            on_call(*call)

    @wraps(own.__call__)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self is not module:
            return own.__call__(self, *args, **kwargs)
        hooked[:] = [True]
        try:
            output = own.__call__(self, *args, **kwargs)
        finally:
            hooked.clear()
        if is_scripted:
            tell(args, kwargs, output)
        return output

    @wraps(own.__call__ if is_scripted else own.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        is_hooked = bool(hooked)
        hooked.clear()
        output = own.forward(self, *args, **kwargs)
        if self is module and not is_hooked:
            tell(args, kwargs, output)
        return output

    def reduced(self: nn.Module, protocol: Any) -> Any:
        made = own.__reduce_ex__(self, protocol)
        if isinstance(made, tuple) and made[:2] == (copyreg.__newobj__, (watched,)):  # type: ignore[attr-defined]
            # Not as it is made of its own class, which the pickler would see that it is not.
            return (copyreg._reconstructor, (own, object, None), *made[2:])  # type: ignore[attr-defined]
        return made

    names = {"__call__": call, "__reduce_ex__": reduced, "_watchers": watchers, "_own": own}
    if not is_scripted:
        names["forward"] = forward
    names |= {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
    watched = types.new_class(own.__name__, (own,), exec_body=lambda namespace: namespace.update(names))
    return watched


def class_name(module: nn.Module) -> str:
    """The name of a module's class."""
    return str(getattr(module, "original_name", type(module).__name__))  # a scripted module hides its own
