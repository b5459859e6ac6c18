"""Names of torch functions by what they are: piecewise linear, a product, or smooth (everything else)."""

PIECEWISE_LINEAR = frozenset(
    """
    relu relu_ relu6 leaky_relu leaky_relu_ prelu rrelu threshold hardtanh hardtanh_ hardsigmoid
    hardsigmoid_ clamp clamp_ clip abs neg
    maximum minimum max min amax amin where max_pool1d max_pool2d max_pool3d _max_pool1d _max_pool2d
    _max_pool3d adaptive_max_pool1d adaptive_max_pool2d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d mean sum add add_ sub sub_ rsub __add__ __radd__ __iadd__ __sub__
    __rsub__ __isub__ __neg__ __getitem__ __setitem__ cat concat stack chunk split unbind narrow select
    index_select gather pad roll flip expand expand_as repeat repeat_interleave tile view view_as reshape
    flatten unflatten squeeze unsqueeze permute transpose t movedim contiguous clone to float double type_as
    type detach dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout batch_norm interpolate
    upsample pixel_shuffle pixel_unshuffle channel_shuffle unfold fold cumsum copy_ fill_ zero_ requires_grad_
    trace diagonal tril triu masked_fill
    """.split()  # noqa: SIM905 - a plain list of words reads best
)
"""Functions that are piecewise linear in their tensor arguments (batch_norm: in evaluation mode)."""

BILINEAR = frozenset(
    """
    mul mul_ __mul__ __rmul__ __imul__ multiply matmul __matmul__ __rmatmul__ mm bmm addmm baddbmm linear
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d einsum dot inner outer
    """.split()  # noqa: SIM905 - a plain list of words reads best
)
"""Products: linear while only one factor depends on the layer."""

QUOTIENT = frozenset(
    """
    div div_ __truediv__ __rtruediv__ __itruediv__ divide true_divide
    """.split()  # noqa: SIM905 - a plain list of words reads best
)
"""Linear while the divisor does not depend on the layer."""

LOOK_ONLY = frozenset(
    """
    __get__ size dim numel stride is_floating_point __len__ __bool__ type element_size is_contiguous
    """.split()  # noqa: SIM905 - a plain list of words reads best
)
"""What looks at a tensor without computing with it."""
