"""One use of a weight: a convolution or a linear map reduced to what its derivatives need."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Ints = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleLayout:
    """Where the samples of a linear map lie: along `axis`, each sample's entries together or, if `inner`, apart."""

    axis: int = 0
    inner: bool = False

    def by_sample(self, x: Tensor, samples: int) -> Tensor:
        """Return `x` as `(N, T, features)`."""
        x = x.movedim(self.axis, 0)
        if self.inner:
            x = x.unflatten(0, (-1, samples)).transpose(0, 1)
        return x.reshape(samples, -1, x.shape[-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Convolution:
    """A convolution or transposed convolution of any dimension, as `aten.convolution` sees it."""

    stride: Ints
    padding: Ints
    dilation: Ints
    transposed: bool = False
    output_padding: Ints
    groups: int = 1

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output `(N, O, *)`."""
        return torch.ops.aten.convolution.default(x, weight, bias, *self._geometry, self.groups)

    def input_gradient(self, delta: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient in `x`, given the gradient `delta` in the output."""
        return self._backward(delta, x, weight, self.groups, input_wanted=True)

    def weight_gradient(self, delta: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient in the weight, summed over the samples."""
        return self._backward(delta, x, weight, self.groups, input_wanted=False)

    def sample_gradients(self, delta: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return every sample's weight gradient `(N, *weight.shape)`: one convolution with the samples as groups.

        Blocked kernels want the input channels of a group in eights; few or odd ones cost more than copies of patches.
        """
        n = x.shape[0]
        if weight.shape[1] % 8 and self.groups == 1 and not self.transposed:
            return (delta.flatten(2) @ self.patches(x, weight).transpose(1, 2)).view(n, *weight.shape)
        apart = weight.new_empty(()).expand(n * weight.shape[0], *weight.shape[1:])
        delta, x = (t.reshape(1, n * t.shape[1], *t.shape[2:]) for t in (delta, x))
        return self._backward(delta, x, apart, n * self.groups, input_wanted=False).view(n, *weight.shape)

    def patches(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the input patches `(N, K, T)` of a convolution that is not transposed."""
        rank = weight.dim() - 2
        if any(self.padding):
            x = F.pad(x, [side for side in reversed(self.padding) for _ in range(2)])
        for axis, (k, s, d) in enumerate(zip(weight.shape[2:], self.stride, self.dilation, strict=True), start=2):
            x = x.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
        order = [0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank)]
        return x.permute(order).reshape(x.shape[0], -1, math.prod(x.shape[2 : 2 + rank]))

    def output_size(self, x: Tensor, weight: Tensor) -> Ints:
        """Return the positions of the output along each axis, for a convolution that is not transposed."""
        sizes = zip(x.shape[2:], weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)

    def offsets(self, axis: int, x: Tensor, weight: Tensor) -> Iterator[tuple[slice, slice]]:
        """Yield, for each position of the kernel along `axis`, the outputs and the inputs that meet there."""
        outputs, inputs, stride = self.output_size(x, weight)[axis], x.shape[2 + axis], self.stride[axis]
        for k in range(weight.shape[2 + axis]):
            at = k * self.dilation[axis] - self.padding[axis]  # the input that the first output meets
            first, last = max(0, -(at // stride)), min(outputs, (inputs - 1 - at) // stride + 1)
            start, number = first * stride + at, max(0, last - first)
            yield slice(first, first + number), slice(start, start + number * stride, stride)

    def output_scale(self, scale: Tensor, weight: Tensor) -> Tensor:
        """Spread one number per output channel over the weight, broadcastable to its shape."""
        if not self.transposed:
            return scale.view(-1, *[1] * (weight.dim() - 1))
        per_group = scale.view(self.groups, 1, -1).expand(-1, weight.shape[0] // self.groups, -1)
        return per_group.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))

    @property
    def _geometry(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding

    def _backward(self, delta: Tensor, x: Tensor, weight: Tensor, groups: int, *, input_wanted: bool) -> Tensor:
        mask = [input_wanted, not input_wanted, False]
        results = torch.ops.aten.convolution_backward(delta, x, weight, None, *self._geometry, groups, mask)
        return results[0] if input_wanted else results[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """`x @ weightᵀ`, or `x @ weight` where `transposed`; all axes of `x` before the last hold samples and positions."""

    samples: int
    layout: SampleLayout = SampleLayout()
    transposed: bool = False

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output `(..., O)`."""
        return F.linear(x, weight.t() if self.transposed else weight, bias)

    def input_gradient(self, delta: Tensor, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ARG002
        """Return the gradient in `x`, given the gradient `delta` in the output."""
        return delta @ (weight.t() if self.transposed else weight)

    def weight_gradient(self, delta: Tensor, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ARG002
        """Return the gradient in the weight, summed over the samples."""
        left, right = (x, delta) if self.transposed else (delta, x)
        return left.flatten(0, -2).t() @ right.flatten(0, -2)

    def sample_gradients(self, delta: Tensor, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ARG002
        """Return every sample's weight gradient `(N, *weight.shape)`, summed over its positions."""
        delta, x = self.by_sample(delta), self.by_sample(x)
        left, right = (x, delta) if self.transposed else (delta, x)
        return left.transpose(1, 2) @ right

    def by_sample(self, x: Tensor) -> Tensor:
        """Return `x` as `(N, T, features)`."""
        return self.layout.by_sample(x, self.samples)

    def output_scale(self, scale: Tensor, weight: Tensor) -> Tensor:  # noqa: ARG002
        """Spread one number per output feature over the weight, broadcastable to its shape."""
        return scale.view(1, -1) if self.transposed else scale.view(-1, 1)


Call = Convolution | Linear
Arguments = tuple[Tensor, Tensor, Tensor | None]
Reading = tuple[Arguments, Callable[[int, SampleLayout], Call]]


def _convolution(rank: int, *, transposed: bool) -> Callable[..., Reading]:
    """Return the reader of `torch.conv{rank}d` or `torch.conv_transpose{rank}d` calls."""

    def every(value: int | Ints) -> Ints:
        return (value,) * rank if isinstance(value, int) else tuple(value) * (rank // len(value))

    def plain(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):  # noqa: ANN001, ANN202
        if isinstance(padding, str):
            input, padding = _pad_explicitly(input, weight, padding, every(dilation))
        call = Convolution(
            stride=every(stride),
            padding=every(padding),
            dilation=every(dilation),
            output_padding=every(0),
            groups=groups,
        )
        return (input, weight, bias), lambda *_: call

    def transpose(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):  # noqa: ANN001, ANN202
        call = Convolution(
            stride=every(stride),
            padding=every(padding),
            dilation=every(dilation),
            transposed=True,
            output_padding=every(output_padding),
            groups=groups,
        )
        return (input, weight, bias), lambda *_: call

    return transpose if transposed else plain


def _pad_explicitly(x: Tensor, weight: Tensor, padding: str, dilation: Ints) -> tuple[Tensor, int]:
    """Turn `padding="same"` into a padded input, the larger side behind; `"valid"` is no padding."""
    if padding == "valid":
        return x, 0
    totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    return F.pad(x, [side for total in reversed(totals) for side in (total // 2, total - total // 2)]), 0


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Reading:
    return (input, weight, bias), lambda n, layout: Linear(samples=n, layout=layout)


def _matmul(input: Tensor, other: Tensor) -> Reading:
    return (input, other, None), lambda n, layout: Linear(samples=n, layout=layout, transposed=True)


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor) -> Reading:
    return (mat1, mat2, input), lambda n, layout: Linear(samples=n, layout=layout, transposed=True)


READERS: dict[Any, Callable[..., Reading]] = {
    torch.conv1d: _convolution(1, transposed=False),
    torch.conv2d: _convolution(2, transposed=False),
    torch.conv3d: _convolution(3, transposed=False),
    torch.conv_transpose1d: _convolution(1, transposed=True),
    torch.conv_transpose2d: _convolution(2, transposed=True),
    torch.conv_transpose3d: _convolution(3, transposed=True),
    F.linear: _linear,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    Tensor.matmul: _matmul,
    Tensor.mm: _matmul,
    Tensor.__matmul__: _matmul,
    torch.addmm: _addmm,
}
"""For each function that multiplies by a weight: how to read its arguments."""


def read_call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reading | None:
    """Return the tensors of a multiplication by a weight and what makes its `Call`; None for any other function."""
    if func not in READERS or (func is torch.addmm and {"beta", "alpha"} & kwargs.keys()):
        return None
    return READERS[func](*args, **kwargs)
