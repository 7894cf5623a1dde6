"""Networks; they reach the kernels only through fastconv.nn.

>>> fastconv.models.create_model("resnext50_32x4d", num_classes=10)
>>> backbone = fastconv.models.create_model("mobilenet_v2", features_only=True)
>>> backbone.feature_info.channels(), backbone.feature_info.reduction()

Parameters are named as in torchvision or timm where one of them has the network, so that its checkpoints load:
`weights_of(name)` says whose.
"""

from . import (
    cifar,
    condensenet,
    convnext,
    densenet,
    inception,
    mobilenet,
    replknet,
    resnet,
    shufflenet,
    xception,
)
from ._registry import create_model, list_models, weights_of
from .network import FeatureInfo, Network

__all__ = [
    "FeatureInfo",
    "Network",
    "cifar",
    "condensenet",
    "convnext",
    "create_model",
    "densenet",
    "inception",
    "list_models",
    "mobilenet",
    "replknet",
    "resnet",
    "shufflenet",
    "weights_of",
    "xception",
]
