"""`joint` with compensation saves epochs: a rival trains before it reaches what `joint` has after 0, and after 1.

Pretrained ResNets of CIFAR-10, trained for four epochs on the JPEG images first, so that training recovers only what
pruning cost. Then half or three quarters of the MACs leave, and the small network trains for 0, ¼, 1 and 4 epochs, each
a schedule of its own (one cycle, batches of 128, flips and crops, bfloat16). A quarter of an epoch is one pass over a
quarter of the images. Rivals are as published, without compensation. The learning rate of a cell is the one of `RATES`
that does best on 2 000 validation images in draw 0; accuracy is that on the 10 000 test images, as mean ± standard
deviation over draws of calibration images and of the order of training. Epochs between two measured lengths are read
off a straight line. Cells in the JSON of `--out` are not measured again, so that the same command continues.
"""

import argparse
from pathlib import Path

from support.claims import arguments
from support.epochs import run_study


def more(parser: argparse.ArgumentParser) -> None:
    """Add what only this study takes."""
    parser.add_argument("--work", type=Path, default=Path("out/epochs"), help="keeps the dense weights")
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56], help="ResNets to prune")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25], help="kept MACs")
    parser.add_argument("--epochs", type=float, nargs="+", default=[0, 0.25, 1, 4], help="lengths of training")
    parser.add_argument("--draws", type=int, default=3, help="draws of calibration images; 0 measures nothing")
    parser.add_argument("--picture", type=Path, help="PNG to draw of what is measured")


if __name__ == "__main__":
    run_study(arguments(__doc__, more))
