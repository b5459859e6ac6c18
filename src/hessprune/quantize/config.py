"""How a network becomes INT8: the grids, and how it is trained with them."""

from dataclasses import dataclass
from typing import Literal

from hessprune.quantize.targets import Target
from hessprune.training.config import FinetuneConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """The grids of `prepare_qat`, for what prepares models by itself: the arguments of the same names."""

    target: Target = "onnxruntime"
    activations: Literal["asymmetric", "symmetric"] = "asymmetric"
    weight_bits: Literal[7, 8] = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class QatConfig(FinetuneConfig):
    """How to train a fake-quantised network with `finetune`: as `FinetuneConfig`, with the defaults of EHAP.

    Half of the loss comes from the outputs of the float model, which `finetune` wants as `teacher`.

    References:
        Chong, Gupta and Chen (2023), Resource-efficient quantized deep learning via Hessian-aware pruning,
            arXiv:2306.07030.
    """

    epochs: int = 10
    lr: float = 1e-4
    weight_decay: float = 1e-4
    distill_weight: float = 0.5
    freeze_ranges_at: float = 0.5
    reestimate_batchnorm: bool = False
