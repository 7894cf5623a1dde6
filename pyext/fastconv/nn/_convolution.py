"""What the modules of convolutions share."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..ops._convolution import ACTIVATIONS


class ActivatedConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` with an activation, which an operator's own module hands to its function."""

    def __init__(self, *args: Any, activation: str, **kwargs: Any) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        super().__init__(*args, **kwargs)
        self.activation = activation

    @classmethod
    def _sharing(cls, conv: nn.Conv2d, **kwargs: Any) -> Any:
        """A module with the geometry and the very parameters of `conv`. `kwargs`: what else the module takes."""
        module = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
            bias=conv.bias is not None, padding_mode=conv.padding_mode, device="meta", dtype=conv.weight.dtype,
            **kwargs,
        )  # fmt: skip
        module.weight, module.bias = conv.weight, conv.bias
        return module.train(conv.training)

    def _padded(self, input: Tensor) -> tuple[Tensor, Any]:
        """The input, and the zeros to pad it with: none where `padding_mode` has filled the border."""
        if self.padding_mode == "zeros":
            return input, self.padding
        return nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.activation == "none" else f"{text}, activation={self.activation}"
