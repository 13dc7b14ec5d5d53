"""What flows between the modules of somebody's model in one forward pass that he makes himself.

Each call of a module is an edge from one state to another. A state is a tensor *as it was at that time*: its identity
and how often it had been written to, so that ``x += shortcut`` in a residual block ends in another state than the
convolution before it returned. Nothing is kept of a tensor but these two numbers, unless somebody who watches along
takes a copy.

Calls are watched in ``Module.__call__``, where torch looks for a compiled version of a module, and not by forward
hooks: torch's transformer layers take another route where there is a hook, and fail there on nested tensors.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from lightning_lyapunov.capture.structures import Path
from lightning_lyapunov.capture.tokens import Token, Tokens, size_of, tensors_of

_Node: TypeAlias = "tuple[int, int]"
"""A tensor in the graph of gradients: the number of the operation it comes from, and which of its outputs it is."""
WEIGHTS = "parametrizations"
"""Where torch holds modules that compute weights, and take no states."""
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module")
MOST_NODES = 2000
"""Operations that are gone back through to see what an argument depends on."""


@dataclass(eq=False)
class ModuleCall:
    """One call of a module: an edge of the flow.

    Attributes:
        module: Without the wrapper of ``torch.compile``.
        name: As the user wrote it, without what wrappers add.
        index: Calls that began before it.
        parent: The call it was made in; None for one made outside any module that is watched.
        inner: The calls that were made in it, in order.
        where: Of the state among ``(args, kwargs)``: the first floating tensor.
        given: The floating tensors among ``(args, kwargs)`` as they were when it began.
        sizes: Their shapes.
        depends: What they were computed from, as far as the graph of gradients tells; without those it does not know.
        returned: The floating tensors it returned, as they were then.
        shapes: Of the states before and after.
        obstacle: Why it cannot be a link of a chain, where that shows in what it was given.
        has_ended: Whether it returned.
    """

    module: nn.Module
    name: str
    index: int
    parent: ModuleCall | None = None
    inner: list[ModuleCall] = field(default_factory=list)
    where: Path = ()
    given: dict[Path, Token] = field(default_factory=dict)
    sizes: dict[Path, torch.Size] = field(default_factory=dict)
    depends: dict[Path, frozenset[Token]] = field(default_factory=dict)
    returned: dict[Path, Token] = field(default_factory=dict)
    shapes: tuple[torch.Size, torch.Size] = (torch.Size(), torch.Size())
    obstacle: str = ""
    has_ended: bool = False
    kept: Any = None
    """What somebody who watches along has taken of it."""

    @property
    def before(self) -> Token | None:
        """The state it was given; None if there is none."""
        return self.given.get(self.where)

    @property
    def after(self) -> Token | None:
        """The state it returned: the first floating tensor; None if there is none, or it was broken off."""
        return next(iter(self.returned.values()), None)

    @property
    def moves(self) -> bool:
        """Whether it takes one state to another."""
        return self.before is not None and self.after is not None and self.before != self.after

    def descendants(self) -> Iterator[ModuleCall]:
        """All calls that were made in it."""
        for call in self.inner:
            yield call
            yield from call.descendants()


@dataclass(eq=False)
class Flow:
    """The calls of a forward pass, in the order in which they began."""

    calls: list[ModuleCall] = field(default_factory=list)
    is_compiled: bool = False
    """Whether modules were left out because they run inside a compiled one."""

    def producers(self) -> dict[Token, list[ModuleCall]]:
        """The calls that returned a state as the one that flows on, the outermost first."""
        found: dict[Token, list[ModuleCall]] = {}
        for call in self.calls:
            if call.moves and call.after is not None:
                found.setdefault(call.after, []).append(call)
        return found


class Keeper(Protocol):
    """Somebody who watches along and may take copies; what it raises is noted and goes no further."""

    def begin(self, call: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call begins."""

    def end(self, call: ModuleCall, output: Any) -> None:
        """A call has returned."""


class FlowWatch:
    """Notes the flow between modules from :meth:`start` to :meth:`stop`, in every forward pass but those of a backward.

    Args:
        modules: Which calls to note, and under which names.
        keeper: Who watches along.
        is_compiled: Whether others could not be watched.

    Attributes:
        flow: What was noted since the last :meth:`begin_anew`.
        seconds: Spent on it.
        trouble: The first exception that was raised meanwhile; the user's forward pass never sees it.
        is_paused: Whether calls pass for now.
    """

    def __init__(
        self, modules: Mapping[nn.Module, str], keeper: Keeper | None = None, *, is_compiled: bool = False
    ) -> None:
        self._modules, self._keeper, self._is_compiled = dict(modules), keeper, is_compiled
        self._watched: list[_Watched] = []
        self.seconds = 0.0
        self.is_paused = False
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget what was noted."""
        self.flow = Flow(is_compiled=self._is_compiled)
        self.trouble: Exception | None = None
        self._open: list[ModuleCall] = []
        self._tokens = Tokens()
        self._nodes: dict[_Node, Token] = {}
        self._made: set[Token] = set()
        self._sources: dict[Token, frozenset[Token]] = {}

    def start(self) -> None:
        """Watch calls: only while a batch is recorded, as others may copy, save, compile or export the model."""
        self.stop()
        self._watched = [_Watched(self, module, name) for module, name in self._modules.items()]
        for one in self._watched:
            one.put()

    def stop(self) -> None:
        """Leave the modules as they were found."""
        for one in self._watched:
            one.take_away()
        self._watched, self._open = [], []

    @property
    def is_looking(self) -> bool:
        """Whether a call is to be noted: none that is compiled or traced, nor one that a backward pass repeats."""
        return not (
            self.is_paused
            or torch._C._get_tracing_state() is not None
            or torch._C._current_graph_task_id() != -1  # a checkpoint computes its inside again
        )

    # ---------------------------------------------------------------- noting

    def begin(self, module: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ModuleCall:
        """Note that a call begins."""
        start = time.perf_counter()
        call = ModuleCall(module, name, len(self.flow.calls), self._open[-1] if self._open else None)
        self.flow.calls.append(call)
        if call.parent is not None:
            call.parent.inner.append(call)
        self._open.append(call)
        try:
            with torch.inference_mode(False), torch.no_grad():
                self._note_given(call, args, kwargs)
                if self._keeper is not None:
                    self._keeper.begin(call, args, kwargs)
        except Exception as error:
            self._note_trouble(error)
        self.seconds += time.perf_counter() - start
        return call

    def end(self, call: ModuleCall, output: Any, *, is_broken: bool = False) -> None:
        """Note that a call has returned, or was broken off."""
        start = time.perf_counter()
        while self._open and self._open.pop() is not call:
            pass  # those inside it that were broken off
        try:
            if not is_broken:
                with torch.inference_mode(False), torch.no_grad():
                    self._note_returned(call, output)
                    if self._keeper is not None:
                        self._keeper.end(call, output)
        except Exception as error:
            self._note_trouble(error)
        self.seconds += time.perf_counter() - start

    def _note_trouble(self, error: Exception) -> None:
        self.trouble = self.trouble or error.with_traceback(None)  # whose frames would keep the graph alive

    def _note_given(self, call: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = tensors_of((args, kwargs))
        floating = {path: tensor for path, tensor in tensors.items() if tensor.is_floating_point()}
        if any(_is_obstacle(call.module, tensor) for tensor in tensors.values()):
            call.obstacle = "a nested tensor"
        elif not floating:
            call.obstacle = "integers" if tensors else "no tensor"
        if call.obstacle:
            return
        call.given = {path: self._tokens.of(tensor) for path, tensor in floating.items()}
        call.sizes = {path: size_of(tensor) for path, tensor in floating.items()}
        call.where = next(iter(floating))
        state = floating.pop(call.where)
        call.shapes = (size_of(state), size_of(state))
        for path, tensor in floating.items():
            if tensor.grad_fn is not None and tensor is not state:
                if (token := call.given[path]) not in self._sources:
                    self._sources[token] = self._ancestors(tensor)
                call.depends[path] = self._sources[token]
        if state.grad_fn is not None and call.given[call.where] not in self._made:
            call.depends[call.where] = self._ancestors(state, nearest=True)  # made outside any module
        self._note_node(state, call.given[call.where])

    def _note_returned(self, call: ModuleCall, output: Any) -> None:
        tensors = {path: tensor for path, tensor in tensors_of(output).items() if tensor.is_floating_point()}
        if any(_is_obstacle(call.module, tensor) for tensor in tensors.values()):
            call.obstacle = "a nested tensor"
            return
        call.returned = {path: self._tokens.of(tensor) for path, tensor in tensors.items()}
        for path, tensor in tensors.items():
            self._note_node(tensor, call.returned[path])
        if tensors:
            call.shapes = (call.shapes[0], size_of(next(iter(tensors.values()))))
        call.has_ended = True

    def _note_node(self, tensor: Tensor, token: Token) -> None:
        self._made.add(token)
        if tensor.grad_fn is not None:
            self._nodes[tensor.grad_fn._sequence_nr(), tensor.output_nr] = token

    def _ancestors(self, tensor: Tensor, *, nearest: bool = False) -> frozenset[Token]:
        """The states noted so far that a tensor was computed from, by the graph of gradients; the nearest or all."""
        found: set[Token] = set()
        seen: set[_Node] = set()
        earliest = next(iter(self._nodes), (0, 0))[0]
        ahead = [(tensor.grad_fn, tensor.output_nr)]
        while ahead and len(seen) < MOST_NODES:
            function, output = ahead.pop()
            if function is None or (number := function._sequence_nr()) < earliest or (number, output) in seen:
                continue
            seen.add((number, output))
            if (number, output) in self._nodes:
                found.add(self._nodes[number, output])
                if nearest:
                    continue
            ahead.extend(function.next_functions)
        return frozenset(found)


def _is_obstacle(module: nn.Module, tensor: Tensor) -> bool:
    """Whether it is nested, but for what torch's encoder gives its layers in the place of a mask."""
    is_known = isinstance(module, nn.TransformerEncoderLayer | nn.TransformerEncoder) and tensor.layout == torch.strided
    return tensor.is_nested and not is_known


# ---------------------------------------------------------------------- watching a module


class _Watched:
    """Stands where a module looks for its compiled version, and calls what would have been called."""

    def __init__(self, watch: FlowWatch, module: nn.Module, name: str) -> None:
        self._watch, self.module, self.name = weakref.ref(watch), module, name
        self._found: Callable[..., Any] | None = vars(module).get("_compiled_call_impl")
        self._is_gone = False

    def put(self) -> None:
        vars(self.module)["_compiled_call_impl"] = self  # not by setattr, which a wrapper may hand on

    def take_away(self) -> None:
        self._is_gone = True
        if vars(self.module).get("_compiled_call_impl") is not self:
            return  # another watch stands before it, or somebody has compiled the module meanwhile
        below = self._found
        while isinstance(below, _Watched) and below._is_gone:
            below = below._found
        if below is None:
            del vars(self.module)["_compiled_call_impl"]
        else:
            vars(self.module)["_compiled_call_impl"] = below

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        original = self._found or self.module._call_impl
        watch = self._watch()
        if torch.compiler.is_compiling() or self._is_gone or watch is None or not watch.is_looking:
            return original(*args, **kwargs)
        call = watch.begin(uncompiled(self.module), self.name, args, kwargs)
        try:
            output = original(*args, **kwargs)
        except BaseException:
            watch.end(call, None, is_broken=True)
            raise
        watch.end(call, output)
        return output

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # in a copy or a pickle of the module there is nothing in its place


def uncompiled(module: nn.Module) -> nn.Module:
    """A module without the wrapper of ``torch.compile``."""
    inside = getattr(module, "_orig_mod", None)
    return inside if isinstance(inside, nn.Module) else module


def shown(name: str) -> str:
    """A module's name as the user wrote it, without the segments that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def watchable(model: nn.Module) -> tuple[dict[nn.Module, str], bool]:
    """The modules of a model whose calls can be watched, and whether there are others, inside compiled ones."""
    found: dict[nn.Module, str] = {}
    hidden: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in hidden or WEIGHTS in name.split("."):
            continue
        found[module] = shown(name)
        if _runs_compiled(module):
            hidden.update(part for part in module.modules() if part is not module)
    return found, bool(hidden)


def _runs_compiled(module: nn.Module) -> bool:
    by_lightning = getattr(module, "_compiler_ctx", None) is not None
    return by_lightning or uncompiled(module) is not module or vars(module).get("_compiled_call_impl") is not None
