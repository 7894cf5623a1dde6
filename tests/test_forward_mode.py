"""Derivatives in forward mode (torch.func.jvp, jacfwd, hessian; torch.autograd.forward_ad) of every operator."""

from __future__ import annotations

from collections.abc import Callable

import fastconv
import pytest
import torch
from operator_examples import EVERY, ONE_OF_EACH
from torch import Tensor
from torch.autograd import forward_ad

Function = Callable[..., Tensor]


def leaves(arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(argument.double().requires_grad_() for argument in arguments)


@pytest.mark.parametrize(("function", "arguments"), EVERY)
def test_against_finite_differences(function: Function, arguments: tuple[Tensor, ...]) -> None:
    assert torch.autograd.gradcheck(
        function, leaves(arguments), check_forward_ad=True, check_backward_ad=False, fast_mode=True
    )


@pytest.mark.parametrize(("function", "arguments"), ONE_OF_EACH)
def test_forward_over_reverse(function: Function, arguments: tuple[Tensor, ...]) -> None:
    assert torch.autograd.gradgradcheck(
        function,
        leaves(arguments),
        check_fwd_over_rev=True,
        check_rev_over_rev=False,
        check_undefined_grad=False,
        fast_mode=True,
    )


@pytest.mark.parametrize(("function", "arguments"), ONE_OF_EACH)
def test_same_as_reverse_mode(function: Function, arguments: tuple[Tensor, ...]) -> None:
    arguments = tuple(argument.double() for argument in arguments)
    first, *others = arguments
    tangents = tuple(torch.randn_like(argument) for argument in arguments)
    output, tangent, *_ = torch.func.jvp(function, arguments, tangents)
    cotangent = torch.randn_like(output)
    _, pull, *_ = torch.func.vjp(function, *arguments)
    expected = sum((grad * t).sum() for grad, t in zip(pull(cotangent), tangents))
    torch.testing.assert_close((cotangent * tangent).sum(), expected)
    with forward_ad.dual_level():
        dual = function(*(forward_ad.make_dual(a, t) for a, t in zip(arguments, tangents)))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, tangent)
        # One of several arguments, and an argument that wants a gradient as well.
        one = forward_ad.unpack_dual(
            function(forward_ad.make_dual(first.clone().requires_grad_(), tangents[0]), *others)
        )
        assert one.tangent is not None and one.primal.requires_grad


@pytest.mark.parametrize(("function", "arguments"), ONE_OF_EACH)
def test_jacobian(function: Function, arguments: tuple[Tensor, ...]) -> None:
    """Of the last argument: jacfwd is jvp under vmap."""
    *others, last = (argument.double() for argument in arguments)

    def of_last(x: Tensor) -> Tensor:
        return function(*others, x).sum(-1)

    torch.testing.assert_close(torch.func.jacfwd(of_last)(last), torch.func.jacrev(of_last)(last))


def test_hessian() -> None:
    x, w = torch.randn(1, 2, 4, 3, dtype=torch.float64), torch.randn(2, 1, 3, 3, dtype=torch.float64)

    def ours(w: Tensor) -> Tensor:
        return fastconv.depthwise_conv2d(x, w, padding=1, activation="silu").pow(2).sum()

    def torchs(w: Tensor) -> Tensor:
        return torch.nn.functional.silu(torch.conv2d(x, w, padding=1, groups=2)).pow(2).sum()

    torch.testing.assert_close(torch.func.hessian(ours)(w), torch.func.hessian(torchs)(w))


def test_no_tangent_is_lost() -> None:
    """torch.library has no place for a rule of forward mode, so the operator by itself refuses; torch.compile then
    leaves the call as it is."""
    x, w = torch.randn(1, 2, 5, 4), torch.randn(2, 1, 3, 3)
    operator = torch.ops.fastconv.depthwise_conv2d
    refused = pytest.raises(Exception, match=r"torch\.ops\.fastconv\.depthwise_conv2d has no forward-mode derivatives")

    def jvp(x: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: fastconv.depthwise_conv2d(x, w), (x,), (x,))[1]

    torch.testing.assert_close(torch.compile(jvp, backend="aot_eager")(x), jvp(x))
    with refused:
        torch.func.jvp(lambda x: operator(x, w), (x,), (x,))
    with forward_ad.dual_level():
        assert torch.equal(operator(x, w), fastconv.depthwise_conv2d(x, w))
        for leaf in (x, x.clone().requires_grad_()):
            with refused:
                operator(forward_ad.make_dual(leaf, x), w)
