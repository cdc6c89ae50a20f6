"""Two devices on a machine that has none: tensors with real numbers that say they lie on ``cpu:0`` or ``cpu:1``.

    with Devices():
        model = spread(model, "model.layers.1")

Within the context whatever is made on one of the two lies there, moves are as usual, and an operation on tensors of
both is refused, as CUDA refuses it; so is an index that lies elsewhere than on the host or with the tensor. What is
computed is what a single device would compute.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HOST = torch.device("cpu")
FIRST, SECOND = torch.device("cpu:0"), torch.device("cpu:1")

aten = torch.ops.aten
MOVES = (aten._to_copy.default, aten.copy_.default)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class Placed(torch.Tensor):
    """A tensor that says it lies on a device; its numbers are ``held`` by an ordinary one."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device) -> "Placed":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"Placed({self.held!r}, {self.device})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func == torch.Tensor.data.__get__:
            return args[0].detach()
        if func == torch.Tensor.data.__set__:
            mine, other = args
            if device_of(mine) != device_of(other):
                raise RuntimeError(f"data on {device_of(other)}, the tensor on {device_of(mine)}")
            mine.held = other.held
            return None
        if func is torch.Tensor.tolist:
            return args[0].held.tolist()
        if func is torch.Tensor.numpy:
            raise TypeError(f"can't convert a tensor on {args[0].device} to numpy")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class FromData(TorchFunctionMode):
    """``torch.tensor`` with a device, which does not always say so to a dispatch mode."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") is not None:
            device = torch.device(kwargs.pop("device"))
            made = func(*args, **kwargs)
            return made if device == HOST or device_of(made) == device else made.to(device, copy=True)
        return func(*args, **kwargs)


class Devices(TorchDispatchMode):
    """Within it there are the devices ``cpu:0`` and ``cpu:1`` beside the host."""

    def __enter__(self) -> "Devices":
        # Moving a module gives it new parameters: these cannot change what kind of tensor they are.
        self._overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self._from_data = FromData()
        self._from_data.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._from_data.__exit__(*error)
        torch.__future__.set_overwrite_module_params_on_conversion(self._overwrite)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def device_of(tensor: torch.Tensor) -> torch.device:
    """The host for a tensor as it always was."""
    return tensor.device if isinstance(tensor, Placed) else HOST


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The operation on the numbers, and where its result lies."""
    tensors = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, torch.Tensor)]
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    device = asked if asked is not None else _place_of_result(func, args, tensors)
    given = {id(_numbers(tensor)): tensor for tensor in tensors}
    kwargs = {key: HOST if key == "device" and value is not None else value for key, value in kwargs.items()}
    result = func(*tree_map(_numbers, args), **tree_map(_numbers, kwargs))

    def put(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in given:  # changed in place
            return given[id(value)]
        return value if device == HOST else Placed(value, device)

    return tree_map(put, result)


def _place_of_result(func: Any, args: Sequence[Any], tensors: Sequence[torch.Tensor]) -> torch.device:
    if func in MOVES:
        return device_of(tensors[0])
    if func in INDEXING:
        device = device_of(args[0])
        indices = [device_of(index) for index in args[1] if index is not None]
        if set(indices) - {device, HOST}:
            raise RuntimeError(f"{func}: indices on {sorted(map(str, indices))}, the tensor on {device}")
        return device
    # A single number of the host goes anywhere.
    places = {device_of(tensor) for tensor in tensors if tensor.dim() or device_of(tensor) != HOST}
    if len(places) > 1:
        raise RuntimeError(f"{func}: tensors on {sorted(map(str, places))}")
    return places.pop() if places else HOST


def _numbers(value: Any) -> Any:
    return value.held if isinstance(value, Placed) else value


def spread(model: nn.Module, places: Callable[[str], torch.device]) -> nn.Module:
    """A copy with each parameter and buffer where ``places`` puts its module, and accelerate's hooks between them."""
    from accelerate import dispatch_model

    model = copy.deepcopy(model)
    device_map = {}
    for name, module in model.named_modules():
        device = places(name)
        if not list(module.children()) or isinstance(module, type(model.get_submodule("model.layers.0"))):
            device_map[name] = device
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = nn.Parameter(Placed(parameter.data, device), requires_grad=False)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = Placed(buffer, device)
    device_map = {n: d for n, d in device_map.items() if not any(n.startswith(f"{o}.") for o in device_map)}
    return dispatch_model(model, device_map, force_hooks=True)
