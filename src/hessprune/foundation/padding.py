"""Zero padding of channels as a module, so that surgery can reach its amounts."""

import torch.nn.functional as F
from torch import Tensor, nn


class ChannelPad(nn.Module):
    """Zero-pad channels: `(N, C, *) → (N, before + C + after, *)`, and let pruning adjust both amounts.

    A bare `F.pad` holds its amounts in source code, where no surgery can reach them.

    Args:
        before: Channels of zeros in front.
        after: Channels of zeros behind.

    Example:
        >>> import torch
        >>> from hessprune.foundation.padding import ChannelPad
        >>> ChannelPad(1, 2)(torch.ones(1, 1, 2, 2)).shape
        torch.Size([1, 4, 2, 2])
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before = before
        self.after = after

    def forward(self, x: Tensor) -> Tensor:  # (N, C, *)
        """Pad axis 1 with zeros."""
        return F.pad(x, (0, 0) * (x.dim() - 2) + (self.before, self.after))

    def extra_repr(self) -> str:
        """Show both amounts in the printed model."""
        return f"before={self.before}, after={self.after}"
