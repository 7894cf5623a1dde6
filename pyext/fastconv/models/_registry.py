"""The networks by name."""

from __future__ import annotations

import difflib
import fnmatch
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .network import Network


@dataclass(frozen=True)
class _Entry:
    build: Callable[..., Network]
    weights: str | None


_ENTRIES: dict[str, _Entry] = {}


def register(name: str, build: Callable[..., Network], weights: str | None = None, **arguments: Any) -> None:
    """Adds a network: `build` with `arguments`, over which those of `create_model` take precedence.

    `weights`: the library's name for the network whose checkpoints load, such as "timm seresnet50".
    """
    _ENTRIES[name] = _Entry(functools.partial(build, **arguments), weights)


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` takes, sorted; those that match a shell pattern."""
    return sorted(fnmatch.filter(_ENTRIES, pattern))


def weights_of(name: str) -> str | None:
    """The library and network whose checkpoints load into this one, or None where there is no such library."""
    return _entry(name).weights


def create_model(
    name: str,
    num_classes: int | None = None,
    in_chans: int = 3,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **arguments: Any,
) -> Network:
    """A network with random weights.

    Args:
        name: one of `list_models()`.
        num_classes: outputs of the classifier, by default 1000 (10 of networks for CIFAR); 0 leaves it out, and the
            network gives pooled features.
        in_chans: channels of the image.
        features_only: the network gives a list of feature maps in place of classes, one for each reduction of the
            image's size; `feature_info` has their `channels()` and `reduction()`.
        out_indices: which of these maps, counted from the largest; negative ones from the smallest. By default all.
        arguments: of the network's own class, such as `zero_init_residual` of resnet50.

    Raises:
        ValueError: the name is not known.
    """
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    network = _entry(name).build(in_chans=in_chans, **arguments)
    if features_only:
        network.keep_features(out_indices)
    elif out_indices is not None:
        raise ValueError("create_model: out_indices is for features_only=True")
    return network


def _entry(name: str) -> _Entry:
    if name not in _ENTRIES:
        similar = ", ".join(difflib.get_close_matches(name, _ENTRIES, 3)) or "see list_models()"
        raise ValueError(f"create_model: there is no network {name!r} (similar: {similar})")
    return _ENTRIES[name]
