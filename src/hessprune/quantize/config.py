"""How a fake-quantised network is trained."""

from dataclasses import dataclass

from hessprune.training.config import FinetuneConfig


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
