"""A compact vision transformer for small images: convolutions cut the image into patches, their mean is classified."""

import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.lab.models.attention import Block


class VisionTransformer(nn.Module):
    """Patches of 4 × 4 pixels, `depth` blocks, the mean over patches.

    Two convolutions of stride 2 make the patches: on small images that trains better than one of stride 4, and the
    zeros around the image tell where a patch is. So there is no table of positions, and images may have any size.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the images.
        depth: Blocks.
        width: Numbers of each patch, a multiple of 16; heads have 16 each.

    References:
        Dosovitskiy et al. (2021), arXiv 2010.11929; Hassani et al. (2021), arXiv 2104.05704, for the convolutions
        in front and for doing without positions.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, *, depth: int = 6, width: int = 96) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width // 2, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Block(width, 4 * width, F.gelu) for _ in range(depth)))
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) → (N, num_classes)
        """Return the logits."""
        x = self.conv2(F.relu(self.conv1(x))).flatten(2).transpose(1, 2)
        return self.classifier(self.norm(self.blocks(x)).mean(1))
