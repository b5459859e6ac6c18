"""Linear maps: one use of a weight as derivatives and refits see it, and the readers of functions that use weights."""

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
    """The place of the samples in the input of a layer: along `axis`, the positions of one sample side by side.

    If `inner`, the samples of one position lie side by side instead.
    """

    axis: int = 0
    inner: bool = False

    def by_sample(self, x: Tensor, samples: int) -> Tensor:
        """Return `x` as `(N, T, features)`."""
        x = x.movedim(self.axis, 0)
        if self.inner:
            x = x.unflatten(0, (-1, samples)).transpose(0, 1)
        return x.reshape(samples, x.shape[:-1].numel() // samples, x.shape[-1])  # perhaps no rows at all


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
        return self._backward(delta, x, weight, self.groups, of_input=True)

    def weight_gradient(self, delta: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient in the weight, summed over the samples."""
        return self._backward(delta, x, weight, self.groups, of_input=False)

    def sample_gradients(self, delta: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return every sample's weight gradient `(N, *weight.shape)`.

        One convolution with the samples as groups computes it. Blocked kernels want the input channels of a group in
        eights, and rearrange the weights of every group. With few or odd channels, kernels of size 1, or far fewer
        positions than output channels, a product of patches is faster.
        """
        n, positions = x.shape[0], math.prod(delta.shape[2:])
        quick = weight.shape[1] % 8 or weight[0, 0].numel() == 1 or 4 * positions < weight.shape[0]
        if quick and self.groups == 1 and not self.transposed:
            return (delta.flatten(2) @ self.patches(x, weight).transpose(1, 2)).view(n, *weight.shape)
        apart = weight.new_empty(()).expand(n * weight.shape[0], *weight.shape[1:])
        delta, x = (t.reshape(1, n * t.shape[1], *t.shape[2:]) for t in (delta, x))
        return self._backward(delta, x, apart, n * self.groups, of_input=False).view(n, *weight.shape)

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
        """Yield the outputs and the inputs that meet at each position of the kernel along `axis`."""
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

    def _backward(self, delta: Tensor, x: Tensor, weight: Tensor, groups: int, *, of_input: bool) -> Tensor:
        mask = [of_input, not of_input, False]
        results = torch.ops.aten.convolution_backward(delta, x, weight, None, *self._geometry, groups, mask)
        return results[0] if of_input else results[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """`x @ weightᵀ`, or `x @ weight` if `transposed`; all axes of `x` before the last hold samples and positions.

    The weight may be that of a pointwise convolution, with more axes of size 1.
    """

    samples: int
    layout: SampleLayout = SampleLayout()
    transposed: bool = False

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output `(..., O)`."""
        return F.linear(x, weight.t() if self.transposed else weight.flatten(1), bias)

    def input_gradient(self, delta: Tensor, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ARG002
        """Return the gradient in `x`, given the gradient `delta` in the output."""
        return delta @ (weight.t() if self.transposed else weight.flatten(1))

    def weight_gradient(self, delta: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient in the weight, summed over the samples."""
        left, right = (x, delta) if self.transposed else (delta, x)
        return (left.flatten(0, -2).t() @ right.flatten(0, -2)).view(weight.shape)

    def sample_gradients(self, delta: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return every sample's weight gradient `(N, *weight.shape)`, summed over its positions."""
        delta, x = self.by_sample(delta), self.by_sample(x)
        left, right = (x, delta) if self.transposed else (delta, x)
        return (left.transpose(1, 2) @ right).view(self.samples, *weight.shape)

    def by_sample(self, x: Tensor) -> Tensor:
        """Return `x` as `(N, T, features)`."""
        return self.layout.by_sample(x, self.samples)

    def output_scale(self, scale: Tensor, weight: Tensor) -> Tensor:
        """Spread one number per output feature over the weight, broadcastable to its shape."""
        return scale.view(1, -1) if self.transposed else scale.view(-1, *[1] * (weight.dim() - 1))


LinearMap = Convolution | Linear
Arguments = tuple[Tensor, Tensor, Tensor | None]
"""Input, weight and bias."""
Reading = tuple[Arguments, Callable[[int, SampleLayout], LinearMap]]
"""The tensors of one use of a weight, and a function of the number of samples and their layout that makes the map."""


def read_convolution(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Reading:  # noqa: ANN001
    """Read `torch.conv1d`, `conv2d` or `conv3d`."""
    rank = weight.dim() - 2
    if isinstance(padding, str):
        input, padding = _pad_explicitly(input, weight, padding, _per_axis(dilation, rank))
    convolution = Convolution(
        stride=_per_axis(stride, rank),
        padding=_per_axis(padding, rank),
        dilation=_per_axis(dilation, rank),
        output_padding=_per_axis(0, rank),
        groups=groups,
    )
    return (input, weight, bias), lambda *_: convolution


def read_transposed_convolution(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1  # noqa: ANN001
) -> Reading:  # fmt: skip
    """Read `torch.conv_transpose1d`, `conv_transpose2d` or `conv_transpose3d`."""
    rank = weight.dim() - 2
    convolution = Convolution(
        stride=_per_axis(stride, rank),
        padding=_per_axis(padding, rank),
        dilation=_per_axis(dilation, rank),
        transposed=True,
        output_padding=_per_axis(output_padding, rank),
        groups=groups,
    )
    return (input, weight, bias), lambda *_: convolution


def read_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Reading:
    """Read `F.linear`."""
    return (input, weight, bias), lambda samples, layout: Linear(samples=samples, layout=layout)


def read_matmul(input: Tensor, other: Tensor) -> Reading | None:
    """Read `torch.matmul` with the weight on the right; None where several matrices are multiplied."""
    if other.dim() > 2:
        return None
    return (input, other, None), lambda samples, layout: Linear(samples=samples, layout=layout, transposed=True)


def read_mm(input: Tensor, mat2: Tensor) -> Reading | None:
    """Read `torch.mm`, whose keywords are its own."""
    return read_matmul(input, mat2)


def read_addmm(input: Tensor, mat1: Tensor, mat2: Tensor, **factors: float) -> Reading | None:
    """Read `torch.addmm` with the weight on the right; None where `beta` or `alpha` scale its parts."""
    if factors:
        return None
    return (mat1, mat2, input), lambda samples, layout: Linear(samples=samples, layout=layout, transposed=True)


def _per_axis(value: int | Ints, rank: int) -> Ints:
    """Return one number for each axis of the kernel."""
    return (value,) * rank if isinstance(value, int) else tuple(value) * (rank // len(value))


def _pad_explicitly(x: Tensor, weight: Tensor, padding: str, dilation: Ints) -> tuple[Tensor, int]:
    """Turn `padding="same"` into a padded input, the larger side behind; `"valid"` is no padding."""
    if padding == "valid":
        return x, 0
    totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    return F.pad(x, [side for total in reversed(totals) for side in (total // 2, total - total // 2)]), 0
