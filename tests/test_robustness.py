"""Every operator under circumstances that no single call shows: threads, forks, thousands of calls, strange values."""

from __future__ import annotations

import inspect
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from operator_examples import EVERY, EXAMPLES, ONE_OF_EACH
from torch import Tensor

Function = Callable[..., Tensor]


def results(function: Function, arguments: tuple[Tensor, ...]) -> list[Tensor]:
    """The output and the gradients of everything."""
    leaves = [tensor.detach().requires_grad_() for tensor in arguments]
    output = function(*leaves)
    # Weighted, so that no gradient is the same everywhere.
    weights = torch.linspace(1, 2, output.numel(), dtype=output.dtype).reshape(output.shape)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), leaves)]


def larger(function: Function, arguments: tuple[Tensor, ...], times: int = 32) -> tuple[Tensor, ...]:
    """With more batch, so that there is work for several threads; the examples call their weights w and biases b."""
    names = inspect.signature(function).parameters
    return tuple(
        x if name in ("w", "b") else x.repeat(times, *[1] * (x.dim() - 1)) for name, x in zip(names, arguments)
    )


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("function", "arguments"), EVERY)
def test_any_number_of_threads(
    function: Function, arguments: tuple[Tensor, ...], threads: Callable[[int], None]
) -> None:
    arguments = larger(function, arguments)
    threads(1)
    expected = results(function, arguments)
    for count in (2, 3, 8):
        threads(count)
        # Parts of a sum are as many as threads.
        torch.testing.assert_close(results(function, arguments), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("function", "arguments"), ONE_OF_EACH)
def test_several_python_threads_at_once(function: Function, arguments: tuple[Tensor, ...]) -> None:
    inputs = [tuple(x + i for x in larger(function, arguments, 8)) for i in range(4)]
    expected = [results(function, of_one) for of_one in inputs]
    found: list[Any] = [None] * len(inputs)

    def work(i: int) -> None:
        found[i] = [results(function, inputs[i]) for _ in range(20)]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for one, repeats in zip(expected, found):
        for again in repeats:
            torch.testing.assert_close(again, one)


def _after_fork(queue: Any) -> None:
    torch.set_num_threads(1)  # as torch's own DataLoader does: OpenMP's threads do not survive a fork
    queue.put([[x.numpy() for x in results(*example)] for examples in EXAMPLES.values() for example in examples])


def test_after_fork() -> None:
    expected = [results(*example) for examples in EXAMPLES.values() for example in examples]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_after_fork, args=(queue,), daemon=True)
    process.start()
    found = queue.get(timeout=60)
    process.join(60)
    assert process.exitcode == 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close([torch.from_numpy(x) for x in one], other)


@pytest.mark.parametrize(("function", "arguments"), EVERY)
def test_inference_mode(function: Function, arguments: tuple[Tensor, ...]) -> None:
    expected = function(*arguments)
    with torch.inference_mode():
        output = function(*arguments)
        assert output.is_inference()
        torch.testing.assert_close(output, expected, rtol=0, atol=0)


LEAK = """
import sys
sys.path[:0] = sys.argv[1:2]
import torch
from operator_examples import EXAMPLES
from test_robustness import results

def resident_bytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

torch.set_num_threads(1)
for name, examples in EXAMPLES.items():
    for step in range(1100):
        if step == 100:  # caches are filled
            before = resident_bytes()
        results(*examples[-1])
    print(name, resident_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_a_thousand_steps_leak_nothing() -> None:
    command = [sys.executable, "-c", LEAK, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    growth = dict(line.split() for line in done.stdout.splitlines())
    assert growth.keys() == EXAMPLES.keys()
    # The smallest tensor of the examples, leaked a thousand times, would be more.
    assert not [(name, size) for name, size in growth.items() if int(size) > 400_000]
