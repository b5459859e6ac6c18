"""VGG with BatchNorm and one linear classifier, as used on 32×32 images."""

from torch import Tensor, nn

from hessprune.foundation.checks import check_choice
from hessprune.lab.models.layers import conv3x3, global_average, initialise

# Convolutions in each of the five resolutions; a 2×2 max pooling lies between them.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """VGG-`depth` with BatchNorm: `features` as numbered in torchvision, then the mean over space and `classifier`.

    Args:
        depth: 11, 13, 16 or 19.
        num_classes: Outputs.
        in_channels: Channels of the images.
        width: Multiplier of all channel counts.

    Raises:
        ArgumentError: `depth` is none of those.

    References:
        Simonyan and Zisserman (2015), Very deep convolutional networks, arXiv:1409.1556.
        Liu et al. (2017), Learning efficient convolutional networks through network slimming, arXiv:1708.06519.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int = 3, *, width: float = 1.0) -> None:
        super().__init__()
        check_choice("depth", str(depth), [str(known) for known in STAGES])
        layers: list[nn.Module] = []
        for stage, (repeats, base) in enumerate(zip(STAGES[depth], CHANNELS, strict=True)):
            layers += [nn.MaxPool2d(2)] if stage else []
            for _ in range(repeats):
                channels = round(base * width)
                layers += [conv3x3(in_channels, channels), nn.BatchNorm2d(channels), nn.ReLU()]
                in_channels = channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(in_channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) → (N, num_classes)
        """Return the logits."""
        return self.classifier(global_average(self.features(x)))
