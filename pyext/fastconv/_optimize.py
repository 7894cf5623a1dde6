"""fastconv.optimize: modules replaced by faster ones that share their parameters, and for inference fused."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import fuse_conv_bn_eval

from . import nn as fnn
from . import ops
from .nn._attention import Bottleneck
from .nn.cbam import ChannelAttention, SpatialAttention
from .nn.split_attention import SelectiveKernelAttention

_RECORD = "_fastconv_changes"


def optimize(
    model: nn.Module, *, inference: bool | None = None, example_inputs: Any = None, report: bool = False
) -> Any:
    """Replaces what fastconv serves better in any model, in place, and for inference fuses what can be fused.

    Depthwise and grouped convolutions, channel shuffles, and the attention modules and shuffle units of torchvision and
    timm are replaced by those of `fastconv.nn`, which share their parameters: the state_dict stays, and so do training,
    optimisers and hooks. For inference, batch normalisations are folded into the convolutions before them, and
    activations into those of fastconv; the state_dict is then another one, so save before, or `restore` first.

    Args:
        model: any module, before torch.compile. DataParallel and DistributedDataParallel are looked into, but under the
            latter nothing is folded.
        inference: whether to fold; by default if the whole model is in evaluation mode.
        example_inputs: arguments of the model, a tensor or a tuple. It is run with them before and after; where the
            results differ by more than rounding, everything is undone and an error raised.
        report: print what was replaced, and what was left and why.

    Returns:
        The model itself; where the model is a module that is replaced, its replacement.

    What cannot be done safely is left: parametrised weights, and folding where a module has hooks, is shared, is called
    more than once, or where torch.fx cannot follow the model's code. `fastconv.restore(model)` undoes all of it.

    Raises:
        TypeError: the model is compiled or scripted.
        ValueError: inference=True, and a module is in training mode.
        RuntimeError: the results for example_inputs changed.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("fastconv.optimize: a scripted model cannot be changed; optimize before scripting")
    if any(type(module).__name__ == "OptimizedModule" for module in model.modules()):
        raise TypeError("fastconv.optimize: the model is compiled already; optimize before torch.compile")
    training = [name for name, module in model.named_modules() if module.training]
    if inference is None:
        inference = not training
    elif inference and training:
        raise ValueError(
            f"fastconv.optimize: inference=True needs eval(), but {training[0] or 'the model'} is training"
        )
    inputs = None if example_inputs is None else _as_tuple(example_inputs)
    before = None if inputs is None else _results(model, inputs)
    work = _Work(model)
    work.replace_modules()
    if inference:
        work.fold()
    if inputs is not None and (difference := _difference(before, _results(work.model, inputs))) is not None:
        restore(work.model)
        raise RuntimeError(f"fastconv.optimize: the results for example_inputs changed ({difference}); undone")
    if report:
        print(work.report())
    return work.model


def restore(model: nn.Module) -> Any:
    """Undoes `optimize`: returns the model with the modules it had, on the device and of the dtype that it has now."""
    for change in reversed(getattr(model, _RECORD, [])):
        new = change.parent._modules[change.name] if change.parent is not None else model
        assert new is not None
        change.old.training = new.training
        # What was folded has no parameters of its own to follow.
        parameter = next(new.parameters(), next(model.parameters(), None))
        if change.copied and parameter is not None:
            change.old.train(new.training).to(parameter.device, parameter.dtype)
        if change.parent is None:
            return restore(change.old)
        change.parent._modules[change.name] = change.old
    if hasattr(model, _RECORD):
        delattr(model, _RECORD)
    return model


@dataclass
class _Change:
    parent: nn.Module | None  # None: the model itself
    name: str
    old: nn.Module
    copied: bool  # whether the new module has parameters of its own


class Folded(nn.Module):
    """In the place of what is part of the convolution before it now."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError(
                "fastconv.optimize folded this model for inference: fastconv.restore(model) before training"
            )
        return input


# ---------------------------------------------------------------------------------------------------------------------
# Replacements that share the parameters


def _adopt(cls: type[nn.Module], old: Any, **attributes: Any) -> nn.Module:
    """A module of `cls` with the children of `old`; `attributes` are the rest of what it needs."""
    new: Any = cls.__new__(cls)
    nn.Module.__init__(new)
    new._modules.update(old._modules)
    for name, value in attributes.items():
        setattr(new, name, value)
    return new


def _split_attention(old: Any) -> nn.Module | str:
    groups = old.fc1.groups
    return _adopt(fnn.SplitAttentionConv2d, old, radix=old.radix, cardinality=groups, _bottleneck=Bottleneck())


def _squeeze_excite(old: Any) -> nn.Module | str:
    return _gated(_adopt(fnn.SqueezeExcite, old, add_maxpool=old.add_maxpool, _bottleneck=Bottleneck()))


def _channel_attention(old: Any) -> nn.Module | str:
    return _gated(_adopt(ChannelAttention, old, _bottleneck=Bottleneck()))


def _spatial_attention(old: Any) -> nn.Module | str:
    return _gated(_adopt(SpatialAttention, old))


def _gated(new: Any) -> nn.Module | str:
    """With torch's sigmoid, which is fused, in the place of timm's own class of it."""
    if type(new.gate).__name__ != "Sigmoid":
        return f"its gate is {type(new.gate).__name__}, which is not fused"
    new.gate = nn.Sigmoid()
    return new


def _selective_kernel(old: Any) -> nn.Module | str:
    new: Any = _adopt(fnn.SelectiveKernel, old, split_input=old.split_input)
    new.attn = _adopt(SelectiveKernelAttention, old.attn, num_paths=old.attn.num_paths, _bottleneck=Bottleneck())
    return new


def _squeeze_excitation(old: Any) -> nn.Module | str:
    if type(old.scale_activation) is not nn.Sigmoid:
        return f"its gate is {type(old.scale_activation).__name__}, which is not fused"
    new: Any = fnn.SqueezeExcite.__new__(fnn.SqueezeExcite)
    nn.Module.__init__(new)
    new.fc1, new.bn, new.act, new.fc2, new.gate = old.fc1, nn.Identity(), old.activation, old.fc2, old.scale_activation
    new.add_maxpool, new._bottleneck = False, Bottleneck()
    return new


def _exported(old: Any) -> nn.Module | str:
    """A graph of torch.export, whose convolutions are calls of ATen's operator; the graph is copied."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(old.graph, {}))
    graph._codegen = old.graph._codegen
    changed = False
    for node in graph.nodes:
        if node.op != "call_function" or node.target is not torch.ops.aten.conv2d.default or len(node.args) < 7:
            continue
        input, weight, bias, stride, padding, dilation, groups = node.args
        if groups > 1:
            depthwise = weight.meta["val"].shape[1] == 1 and input.meta["val"].shape[1] == groups
            ops = torch.ops.fastconv
            node.target = ops.depthwise_conv2d.default if depthwise else ops.grouped_conv2d.default
            stride, padding, dilation = (list(v) * 2 if len(v) == 1 else v for v in (stride, padding, dilation))
            node.args = (input, weight, bias, stride, padding, dilation, *(() if depthwise else (groups,)))
            changed = True
    if not changed:
        return ""
    new = fx.GraphModule(old, graph)
    for name, value in old.__dict__.items():  # what torch.export keeps beside the graph
        new.__dict__.setdefault(name, value)
    return new


def _shuffle_unit(old: Any) -> nn.Module | str:
    return _adopt(fnn.ShuffleUnitV2, old, stride=old.stride, join=fnn.ConcatShuffle(2))


def _deformable(old: Any) -> nn.Module | str:
    return fnn.DeformConv2d.from_conv(old)


def _bottleneck(old: Any) -> nn.Module | str:
    """torchvision's calls one ReLU three times; ours has one for each convolution, which can be fused."""
    if old.conv2.groups == 1 or type(old.relu) is not nn.ReLU:
        return ""  # nothing to gain
    inplace = old.relu.inplace
    rest = {"downsample": old.downsample, "se": None}
    return _adopt(fnn.Bottleneck, old, relu1=nn.ReLU(inplace), relu2=nn.ReLU(inplace), **rest)


def _channel_shuffle(old: Any) -> nn.Module | str:
    return fnn.ChannelShuffle(old.groups)


def _convolution(old: Any) -> nn.Module | str:
    if old.groups == 1:
        return ""  # nothing to say
    if not isinstance(old._parameters.get("weight"), nn.Parameter):
        return "its weight is computed by a hook"
    if old.weight.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        return f"its dtype is {old.weight.dtype}"
    if old.groups == old.in_channels:
        return fnn.DepthwiseConv2d.from_conv(old)
    return fnn.GroupedConv2d.from_conv(old)


_REPLACEMENTS: dict[str, Callable[[Any], nn.Module | str]] = {
    "torch.nn.modules.conv.Conv2d": _convolution,
    "torch.nn.modules.channelshuffle.ChannelShuffle": _channel_shuffle,
    "torchvision.ops.deform_conv.DeformConv2d": _deformable,
    "torchvision.models.resnet.Bottleneck": _bottleneck,
    "torchvision.models.shufflenetv2.InvertedResidual": _shuffle_unit,
    "torchvision.ops.misc.SqueezeExcitation": _squeeze_excitation,
    "timm.layers.cbam.ChannelAttn": _channel_attention,
    "timm.layers.cbam.SpatialAttn": _spatial_attention,
    "timm.layers.split_attn.SplitAttn": _split_attention,
    "timm.layers.squeeze_excite.SEModule": _squeeze_excite,
    "timm.layers.selective_kernel.SelectiveKernel": _selective_kernel,
}
"""By the name of the class, so that no library need be imported: the new module, or why there is none."""


def _full_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


_HOOKS = (
    "_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


def _is_hooked(module: nn.Module) -> bool:
    """Whether someone looks at what goes into the module or comes out of it."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


# ---------------------------------------------------------------------------------------------------------------------
# Folding

_ACTIVATIONS: dict[type, Callable[[Any], str | None]] = {
    nn.ReLU: lambda module: "relu",
    nn.ReLU6: lambda module: "relu6",
    nn.SiLU: lambda module: "silu",
    nn.GELU: lambda module: "gelu" if module.approximate == "none" else None,
    nn.Hardswish: lambda module: "hardswish",
}


class _Tracer(fx.Tracer):
    """Follows a module's code into everything that has code of its own, but for modules with hooks."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(getattr(ops, name) for name in ops.__all__))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_torchs = type(m).__module__.startswith("torch.nn.") and not isinstance(m, nn.Sequential)
        return is_torchs or not m._modules or _is_hooked(m) or _batch_norm(m) is not None


@dataclass
class _Work:
    model: nn.Module
    replaced: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def report(self) -> str:
        lines = [f"fastconv.optimize: {len(self.replaced)} changes"]
        lines += [f"  {line}" for line in self.replaced]
        if self.left:
            lines += [f"left as they were: {len(self.left)}", *(f"  {line}" for line in self.left)]
        return "\n".join(lines)

    # ---- changing the tree

    def _changes(self) -> list[_Change]:
        if not hasattr(self.model, _RECORD):
            object.__setattr__(self.model, _RECORD, [])
        return getattr(self.model, _RECORD)

    def _put(self, parent: nn.Module, name: str, new: nn.Module, copied: bool = False) -> None:
        old = parent._modules[name]
        assert old is not None
        self._changes().append(_Change(parent, name, old, copied))
        parent._modules[name] = new

    def _undo(self, to: int) -> None:
        changes = self._changes()
        while len(changes) > to:
            change = changes.pop()
            assert change.parent is not None
            change.parent._modules[change.name] = change.old

    # ---- replacements

    def replace_modules(self) -> None:
        made: dict[nn.Module, nn.Module] = {}

        def visit(module: nn.Module, path: str) -> nn.Module:
            if module in made:
                return made[module]
            new = self._replacement(module, path)
            made[module] = module if new is None else new
            if new is not None:
                made[new] = new
            target = made[module]
            for name, child in list(target._modules.items()):
                if child is not None and (replaced := visit(child, f"{path}.{name}" if path else name)) is not child:
                    self._put(target, name, replaced)
            return target

        root = visit(self.model, "")
        if root is not self.model:
            changes = [*getattr(self.model, _RECORD, []), _Change(None, "", self.model, copied=False)]
            self.model = root
            object.__setattr__(root, _RECORD, changes)

    def _replacement(self, old: nn.Module, path: str) -> nn.Module | None:
        kind = type(old)
        rule = _exported if isinstance(old, fx.GraphModule) else _REPLACEMENTS.get(_full_name(old))
        if rule is None:
            if isinstance(old, nn.Conv2d) and old.groups > 1 and not kind.__module__.startswith("fastconv."):
                why = "its weight is parametrised" if torch.nn.utils.parametrize.is_parametrized(old) else "a subclass"
                self._leave(path, old, why)
            return None
        new = rule(old)
        if isinstance(new, str):
            if new:
                self._leave(path, old, new)
            return None
        new.training = old.training
        for name in _HOOKS:  # the same dictionaries, so that handles still remove their hooks
            if name in old.__dict__:
                new.__dict__[name] = old.__dict__[name]
        self.replaced.append(f"{path or 'the model'}: {kind.__name__} -> {type(new).__name__}")
        return new

    def _leave(self, path: str, module: nn.Module, why: str) -> None:
        line = f"{path or 'the model'}: {type(module).__name__}: {why}"
        if line not in self.left:
            self.left.append(line)

    # ---- folding

    def fold(self) -> None:
        if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in self.model.modules()):
            self._leave(
                "", self.model, "nothing is folded under DistributedDataParallel, which has its parameters listed"
            )
            return
        self._merge_large_kernels()
        self.places = Counter(id(module) for _, module in self.model.named_modules(remove_duplicate=False))
        self._fold_in(self.model, "")

    def _merge_large_kernels(self) -> None:
        for path, parent in list(self.model.named_modules()):
            for name, child in list(parent._modules.items()):
                if isinstance(child, fnn.ReparamLargeKernelConv2d) and not _is_hooked(child):
                    self._put(parent, name, child.merged(), copied=True)
                    self.replaced.append(f"{path}.{name}: large and small kernel -> one DepthwiseConv2d")

    def _fold_in(self, root: nn.Module, path: str) -> None:
        """Folds in the largest modules whose code torch.fx can follow: this one, or those in it."""
        if not root._modules:
            return
        graph = _trace(root)
        if graph is None:
            for name, child in root._modules.items():
                if child is not None:
                    self._fold_in(child, f"{path}.{name}" if path else name)
            return
        start, lines = len(self._changes()), len(self.replaced)
        fused = self._fold_graph(root, graph, path)
        # What the code calls must be what was put into the tree: a list of its own may hold the modules, for one.
        after = _trace(root) if fused else None
        called = {id(root.get_submodule(n.target)) for n in after.nodes if n.op == "call_module"} if after else set()  # type: ignore[arg-type]
        if any(id(module) not in called for module in fused):
            self._undo(start)
            del self.replaced[lines:]
            self._leave(path, root, "its code does not call the modules by their places in the tree")
        for node in graph.nodes:  # modules that are not followed may have some inside
            if node.op == "call_module" and _is_hooked(leaf := root.get_submodule(node.target)):
                self._fold_in(leaf, ".".join(filter(None, (path, node.target))))

    def _fold_graph(self, root: nn.Module, graph: fx.Graph, path: str) -> list[nn.Module]:
        calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        read = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
        fused: list[nn.Module] = []

        def module_of(node: fx.Node) -> nn.Module:
            return root.get_submodule(str(node.target))

        def why_not(node: fx.Node) -> str | None:
            module = module_of(node)
            if calls[node.target] > 1:
                return "it is called more than once"
            if self.places[id(module)] > 1:
                return "it is shared"
            if _is_hooked(module):
                return "it has hooks"
            if any(name.startswith(f"{node.target}.") for name in read):
                return "its parameters are read elsewhere"
            if torch.nn.utils.parametrize.is_parametrized(module):
                return "it is parametrised"
            return None

        def place(node: fx.Node) -> tuple[nn.Module, str]:
            parent, _, name = str(node.target).rpartition(".")
            return root.get_submodule(parent), name

        def next_module(node: fx.Node) -> fx.Node | None:
            """The module that alone takes the output of this one."""
            (user, *others) = node.users
            alone = not others and user.op == "call_module" and len(user.args) == 1 and not user.kwargs
            return user if alone else None

        for node in graph.nodes:
            if node.op != "call_module" or not node.users:
                continue
            conv = module_of(node)
            if type(conv) not in (nn.Conv2d, fnn.DepthwiseConv2d, fnn.GroupedConv2d):
                continue
            where = ".".join(filter(None, (path, str(node.target))))
            ours: Any = conv if isinstance(conv, (fnn.DepthwiseConv2d, fnn.GroupedConv2d)) else None
            last, gone, text = node, [], []
            new: Any = conv
            after = next_module(node)
            if after is not None and (norm := _batch_norm(module_of(after))) is not None:
                if getattr(ours, "activation", "none") != "none":
                    continue
                if why := why_not(node) or why_not(after):
                    self._leave(where, conv, f"with {after.target}: {why}")
                    continue
                new = _folded(conv, norm)
                gone.append((after, _rest_of(module_of(after))))
                text.append("batch norm")
                last = after
                after = next_module(after) if isinstance(gone[0][1], Folded) else None
            if ours is not None and ours.activation == "none":
                rest = gone[0][1] if gone else None
                if rest is not None and not isinstance(rest, Folded):  # the activation of a norm that has one
                    if (name := _activation_name(rest)) is not None:
                        new = self._activated(new, conv, name)
                        gone[0] = (gone[0][0], Folded().eval())
                        text.append(name)
                elif after is not None and (name := _activation_name(module_of(after))) is not None:
                    if why := why_not(after) or (why_not(node) if last is node else None):
                        self._leave(where, conv, f"{name} is not fused: of {after.target}, {why}")
                    else:
                        new = self._activated(new, conv, name)
                        gone.append((after, Folded().eval()))
                        text.append(name)
            if new is conv:
                continue
            self._put(*place(node), new, copied="batch norm" in text)
            for other, rest in gone:
                self._put(*place(other), rest, copied=True)
            fused.append(new)
            self.replaced.append(f"{where}: {' and '.join(text)} folded into {type(new).__name__}")
        return fused

    @staticmethod
    def _activated(new: Any, old: nn.Module, activation: str) -> nn.Module:
        """`new` with an activation: a module of its own if it is still the one that was there."""
        if new is old:
            more = {"shuffle": old.shuffle} if isinstance(old, fnn.GroupedConv2d) else {}
            return type(old).from_conv(old, activation=activation, **more)  # type: ignore[attr-defined]
        new.activation = activation
        return new


def _trace(root: nn.Module) -> fx.Graph | None:
    try:
        with warnings.catch_warnings(), torch.enable_grad():  # what our modules fold without it, fx cannot follow
            warnings.simplefilter("ignore")
            return _Tracer().trace(root)
    except Exception:  # a model's code may fail in any way on a value that stands for a tensor
        return None


def _batch_norm(module: nn.Module) -> nn.BatchNorm2d | None:
    """The module as a batch normalisation that can be folded, if it is one."""
    known = type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm)
    known = known or _full_name(module) == "timm.layers.norm_act.BatchNormAct2d"
    if not known or module.running_mean is None or module.running_var is None:
        return None
    if isinstance(getattr(module, "drop", None), nn.Module) and not isinstance(module.drop, nn.Identity):
        return None
    return module  # type: ignore[return-value]


def _rest_of(norm: Any) -> nn.Module:
    """What is left of a batch normalisation once it is folded: the activation that timm's has."""
    act = getattr(norm, "act", None)
    return act if isinstance(act, nn.Module) and not isinstance(act, nn.Identity) else Folded().eval()


def _folded(conv: Any, norm: Any) -> Any:
    """`conv` with the normalisation in its weights, and nothing shared with either."""
    if isinstance(conv, fnn.GroupedConv2d) and conv.shuffle > 1:  # whose normalisation is of shuffled channels
        back = torch.arange(conv.out_channels).view(-1, conv.shuffle).t().flatten().to(conv.weight.device)
        plain = nn.BatchNorm2d(conv.out_channels, norm.eps, device=conv.weight.device, dtype=norm.running_mean.dtype)
        for name in ("weight", "bias", "running_mean", "running_var"):
            if (value := getattr(norm, name)) is not None:
                getattr(plain, name).data.copy_(value[back])
        norm = plain.eval()
    fused: Any = fuse_conv_bn_eval(conv, norm)
    for parameter in fused.parameters():
        parameter.requires_grad_(False)
    return fused


def _activation_name(module: nn.Module) -> str | None:
    rule = _ACTIVATIONS.get(type(module))
    return rule(module) if rule else None


# ---------------------------------------------------------------------------------------------------------------------
# Checking


def _as_tuple(inputs: Any) -> tuple:
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _results(model: nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng():
        output = model(*inputs)
    for name, value in model.named_buffers():  # in training, a run changes statistics
        value.copy_(buffers[name])
    return [x for x in torch.utils._pytree.tree_leaves(output) if isinstance(x, Tensor)]


def _difference(before: list[Tensor] | None, after: list[Tensor]) -> str | None:
    for want, got in zip(before or [], after, strict=True):
        if want.shape != got.shape or want.dtype != got.dtype:
            return f"{list(want.shape)} to {list(got.shape)}"
        if not want.is_floating_point() or want.numel() == 0:
            continue
        tolerance = 2**10 * torch.finfo(want.dtype).eps  # of rounding, over the layers of a network
        error, scale = (got - want).abs().max().item(), want.abs().max().item()
        if not error <= tolerance * max(scale, 1e-30):
            return f"by {error:.2g} of {scale:.2g}"
    return None
