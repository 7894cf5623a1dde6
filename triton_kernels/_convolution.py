"""From tensors as the dispatcher gives them to the checked 4-d tensors that convolution launchers of Triton take."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def implementations(
    name: str,
    launch_forward: Callable[..., Tensor],
    launch_input_grad: Callable[..., Tensor],
    launch_weight_grad: Callable[..., Tensor],
) -> dict[str, Callable[..., Any]]:
    """An operator, its two gradients and, where it has one, the operator of both, by name. The launchers take 4-d
    tensors and the Geometry of fastconv.ops.<name>:

        launch_forward(input, weight, bias, geometry, activation)
        launch_input_grad(grad_output, input, weight, geometry)
        launch_weight_grad(grad_output, input, geometry)
    """
    parameters = getattr(torch.ops.fastconv, name).default._schema.arguments[3:]
    at = [parameter.name for parameter in parameters].index("activation")
    defaults = [parameter.default_value for parameter in parameters]

    def pages() -> tuple[Any, Any]:
        # Imported late: these pages need the operators that this package helps to register.
        package = __package__.rpartition(".")[0]
        return importlib.import_module(f"{package}.ops._convolution"), importlib.import_module(f"{package}.ops.{name}")

    def forward(input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any) -> Tensor:
        rest = (*rest, *defaults[len(rest) :])  # trailing arguments that equal their defaults are not passed
        common, page = pages()
        common.check_rank(name, input)
        if input.dim() == 3:
            return forward(input.unsqueeze(0), weight, bias, *rest).squeeze(0)
        g = page.check_arguments(name, input, weight, bias, *rest)
        with on_device_of(input):
            return launch_forward(input, weight, bias, g, rest[at])

    def checked_geometry(op: str, grad_output: Tensor, input: Tensor, weight: Tensor, geometry: tuple) -> Any:
        common, page = pages()
        g = page.check_arguments(op, input, weight, None, *geometry[:at], "none", *geometry[at:])
        common.check_grad_output(op, grad_output, input, g)
        return g

    def input_grad(grad_output: Tensor, input: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
        op = f"_{name}_input_grad"
        pages()[0].check_ranks(op, grad_output, input)
        if input.dim() == 3:
            return input_grad(grad_output.unsqueeze(0), input.unsqueeze(0), weight, *geometry).squeeze(0)
        g = checked_geometry(op, grad_output, input, weight, geometry)
        with on_device_of(input):
            return launch_input_grad(grad_output, input, weight, g)

    def weight_grad(grad_output: Tensor, input: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
        op = f"_{name}_weight_grad"
        pages()[0].check_ranks(op, grad_output, input)
        if input.dim() == 3:
            return weight_grad(grad_output.unsqueeze(0), input.unsqueeze(0), weight, *geometry)
        *geometry, _ = geometry  # type: ignore[assignment]  # the sums are in a fixed order, asked for or not
        g = checked_geometry(op, grad_output, input, weight, tuple(geometry))
        with on_device_of(input):
            return launch_weight_grad(grad_output, input, g)

    def backward(grad_output: Tensor, input: Tensor, weight: Tensor, *geometry: Any) -> tuple[Tensor, Tensor]:
        pages()[0].check_ranks(f"_{name}_backward", grad_output, input)
        return input_grad(grad_output, input, weight, *geometry[:-1]), weight_grad(
            grad_output, input, weight, *geometry
        )

    found: dict[str, Callable[..., Any]] = {
        name: forward,
        f"_{name}_input_grad": input_grad,
        f"_{name}_weight_grad": weight_grad,
    }
    return found | ({f"_{name}_backward": backward} if hasattr(torch.ops.fastconv, f"_{name}_backward") else {})


def on_device_of(x: Tensor) -> Any:
    # Triton launches on the current device. CPU tensors come from tests, which run the kernels in Triton's interpreter.
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
