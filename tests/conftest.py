"""One thread: on networks this small, threads only wait for each other, minutes of it on a busy machine."""

import torch

torch.set_num_threads(1)
