"""fastconv: fast convolution operators for PyTorch, on the CPU and on the GPU.

Functions (`fastconv.depthwise_conv2d`) call operators (`torch.ops.fastconv.depthwise_conv2d`), which PyTorch treats as
its own: autograd and double backward, autocast, torch.compile, export and vmap. `fastconv.nn` has the modules,
`fastconv.models` the networks; `fastconv.onnx` and `fastconv.decompositions` take exported programs to where fastconv
is not installed.
"""

from importlib.metadata import version as _version

from . import _load, decompositions, models, nn, onnx  # noqa: F401  (_load comes first: it registers the operators)
from ._optimize import optimize, restore
from .ops import (
    average_max_pool,
    channel_pool,
    channel_shuffle,
    concat_shuffle,
    deform_aggregate2d,
    deform_conv2d,
    depthwise_conv2d,
    grouped_conv2d,
    spatial_gate,
    split_attention_combine,
    split_attention_pool,
)

__version__ = _version("fastconv")
__all__ = [
    "__version__",
    "average_max_pool",
    "channel_pool",
    "channel_shuffle",
    "concat_shuffle",
    "decompositions",
    "deform_aggregate2d",
    "deform_conv2d",
    "depthwise_conv2d",
    "grouped_conv2d",
    "models",
    "nn",
    "onnx",
    "optimize",
    "restore",
    "spatial_gate",
    "split_attention_combine",
    "split_attention_pool",
]
