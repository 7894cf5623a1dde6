"""One of two processes of tests/test_distributed.py: `python distributed_worker.py CHECK RANK FILE`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import fastconv
import fastconv.distributed
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

torch.manual_seed(0)  # the same tensors in both processes

BATCH, CHANNELS, WEIGHT = Shard(0), Shard(1), Shard(0)
EVERYWHERE = Replicate()


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


EXAMPLES: dict[str, tuple[Callable[..., Any], list[Tensor], list[list[Any]]]] = {
    "depthwise_conv2d": (
        lambda x, w, b: fastconv.depthwise_conv2d(x, w, b, padding=1, activation="silu"),
        [rand(4, 6, 7, 5), rand(12, 1, 3, 3), rand(12)],
        [[BATCH, EVERYWHERE, EVERYWHERE], [CHANNELS, WEIGHT, WEIGHT], [Shard(2), EVERYWHERE, WEIGHT]],
    ),
    "depthwise_conv2d, unbatched": (
        lambda x, w: fastconv.depthwise_conv2d(x, w),
        [rand(6, 7, 5), rand(6, 1, 3, 3)],
        [[Shard(0), WEIGHT], [Shard(1), EVERYWHERE]],
    ),
    "grouped_conv2d": (
        lambda x, w: fastconv.grouped_conv2d(x, w, stride=2, groups=2, shuffle=3),
        [rand(4, 8, 7, 5), rand(12, 4, 3, 3)],
        [[BATCH, EVERYWHERE], [CHANNELS, WEIGHT]],
    ),
    "channel_shuffle": (
        lambda x: fastconv.channel_shuffle(x, 3),
        [rand(4, 6, 7, 2)],
        [[BATCH], [CHANNELS], [Shard(3)]],
    ),
    "concat_shuffle": (
        lambda x, y: fastconv.concat_shuffle([x, y], 2),
        [rand(4, 6, 2, 5), rand(4, 2, 2, 5)],
        [[BATCH, BATCH], [CHANNELS, CHANNELS], [Shard(2), BATCH]],
    ),
    "split_attention_pool": (lambda x: fastconv.split_attention_pool(x, 3), [rand(4, 6, 7, 2)], [[BATCH], [CHANNELS]]),
    "split_attention_combine": (
        lambda x, logits: fastconv.split_attention_combine(x, logits, 2),
        [rand(4, 6, 7, 2), rand(4, 6)],
        [[BATCH, BATCH], [CHANNELS, CHANNELS], [BATCH, EVERYWHERE]],
    ),
    "channel_pool": (lambda x: fastconv.channel_pool(x), [rand(4, 6, 7, 2)], [[BATCH], [Shard(3)], [CHANNELS]]),
    "average_max_pool": (
        lambda x: fastconv.average_max_pool(x),
        [rand(4, 6, 7, 2)],
        [[BATCH], [CHANNELS], [Shard(2)]],
    ),
    "spatial_gate": (
        lambda x, logits: fastconv.spatial_gate(x, logits),
        [rand(4, 6, 7, 2), rand(4, 1, 7, 2)],
        [[BATCH, BATCH], [CHANNELS, EVERYWHERE], [Shard(3), Shard(3)], [Shard(2), BATCH]],
    ),
    "deform_conv2d": (
        lambda x, offset, w, mask, b: fastconv.deform_conv2d(x, offset, w, b, padding=1, mask=mask),
        [rand(4, 6, 5, 4), rand(4, 36, 5, 4), rand(8, 3, 3, 3), rand(4, 18, 5, 4), rand(8)],
        [[BATCH, BATCH, EVERYWHERE, BATCH, EVERYWHERE], [CHANNELS, EVERYWHERE, WEIGHT, EVERYWHERE, WEIGHT]],
    ),
    "deform_aggregate2d": (
        lambda x, offset, mask: fastconv.deform_aggregate2d(x, offset, mask, 3, padding=1, groups=2),
        [rand(4, 6, 5, 4), rand(4, 36, 5, 4), rand(4, 18, 5, 4)],
        [[BATCH, BATCH, BATCH], [CHANNELS, EVERYWHERE, BATCH]],
    ),
}
"""An operator, its tensors, and ways to shard them; the first way must not be redistributed."""


def check_sharding(rank: int) -> None:
    """Results and gradients are those of whole tensors."""
    mesh = init_device_mesh("cpu", (2,))
    for name, (function, tensors, ways) in EXAMPLES.items():
        whole = [tensor.clone().requires_grad_() for tensor in tensors]
        expected = function(*whole)
        grad = torch.randn_like(expected)
        expected.backward(grad)
        for placements in ways:
            parts: list[Any] = [
                distribute_tensor(tensor, mesh, [place]).requires_grad_() for tensor, place in zip(tensors, placements)
            ]
            output = function(*parts)
            print(name, placements, flush=True)  # which one failed, if one does
            assert isinstance(output, DTensor)
            if placements is ways[0]:
                assert output.placements == (placements[0],)
            output.backward(distribute_tensor(grad, mesh, output.placements))
            torch.testing.assert_close(output.full_tensor(), expected)
            for part, tensor in zip(parts, whole):
                torch.testing.assert_close(part.grad.full_tensor(), tensor.grad)


class Network(nn.Module):
    """A block of each kind; no batch norm, whose statistics of half a batch are not those of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.depthwise = fastconv.nn.DepthwiseConv2d(12, 12, 5, padding=2, activation="relu")
        self.grouped = fastconv.nn.GroupedConv2d(12, 12, 3, padding=1, groups=3, shuffle=3)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.grouped(self.depthwise(x))
        return self.head(fastconv.concat_shuffle([x, y], 2).mean((2, 3)))


def train(network: nn.Module, x: Tensor, target: Tensor) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), target).backward()
        optimizer.step()


def check_training(rank: int) -> None:
    """Three steps of DDP and of FSDP give the parameters that one process gets from the whole batch."""
    x, target = rand(8, 3, 16, 12), torch.randint(5, (8,))
    alone = Network().double()
    start = {name: value.clone() for name, value in alone.state_dict().items()}
    train(alone, x, target)

    def check(parameters: dict[str, Any]) -> None:
        for name, value in alone.named_parameters():
            torch.testing.assert_close(parameters[name], value)
            assert not torch.equal(value, start[name])

    half = slice(4 * rank, 4 * rank + 4)
    network = Network().double()
    network.load_state_dict(start)
    train(DistributedDataParallel(network), x[half], target[half])
    check(dict(network.named_parameters()))

    network.load_state_dict(start)
    for layer in (network.depthwise, network.grouped):
        fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    fully_shard(network, mesh=init_device_mesh("cpu", (2,)))
    train(network, x[half], target[half])
    sharded: dict[str, Any] = dict(network.named_parameters())
    check({name: value.full_tensor() for name, value in sharded.items()})


def check_optimized(rank: int) -> None:
    """As check_training, of a network of torch's modules that is optimized before DDP wraps it, or after."""

    def plain_network() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 5, padding=2, groups=12), nn.ReLU(),
            nn.Conv2d(12, 12, 3, padding=1, groups=3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
        ).double()  # fmt: skip

    def replaced(network: nn.Module) -> int:
        kinds = (fastconv.nn.DepthwiseConv2d, fastconv.nn.GroupedConv2d)
        return sum(isinstance(module, kinds) for module in network.modules())

    x, target = rand(8, 3, 16, 12), torch.randint(5, (8,))
    alone = plain_network()
    start = {name: value.clone() for name, value in alone.state_dict().items()}
    train(alone, x, target)
    half = slice(4 * rank, 4 * rank + 4)
    for is_wrapped_first in (False, True):
        network = plain_network()
        network.load_state_dict(start)
        if is_wrapped_first:
            parallel = fastconv.optimize(DistributedDataParallel(network))
        else:
            parallel = DistributedDataParallel(fastconv.optimize(network))
        assert replaced(parallel) == 2
        train(parallel, x[half], target[half])
        for name, value in alone.named_parameters():
            torch.testing.assert_close(parallel.get_parameter(f"module.{name}"), value)
            assert not torch.equal(value, start[name])
        fastconv.restore(parallel if is_wrapped_first else parallel.module)
        assert replaced(parallel) == 0
        torch.testing.assert_close(parallel(x), alone(x))


if __name__ == "__main__":
    check, rank, file = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    {"sharding": check_sharding, "training": check_training, "optimized": check_optimized}[check](rank)
    dist.destroy_process_group()
