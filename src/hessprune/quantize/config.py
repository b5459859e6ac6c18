"""Settings of quantisation: the grids of a network, and its training with rounding."""

from dataclasses import dataclass
from typing import Literal

from hessprune.quantize.backend import find_backend
from hessprune.training.config import FinetuneConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """The grids of a quantised network: the arguments of `prepare_qat` with the same names.

    Raises:
        ArgumentError: The target is unknown, or has no kernels for these grids.

    Example:
        >>> import hessprune as hp
        >>> hp.Scheme(weight_bits=8).activations
        'asymmetric'
    """

    target: str = "onnxruntime"
    activations: Literal["asymmetric", "symmetric"] = "asymmetric"
    weight_bits: Literal[7, 8] = 7

    def __post_init__(self) -> None:
        find_backend(self.target).check_grids(self.activations, self.weight_bits)


@dataclass(frozen=True, kw_only=True, slots=True)
class QatConfig(FinetuneConfig):
    """Settings of `finetune` for a prepared model: those of `FinetuneConfig`, with the defaults of EHAP.

    Half of the loss comes from the outputs of the float model: pass that model to `finetune` as `teacher`.

    References:
        Chong, Gupta and Chen (2023), Resource-efficient quantized deep learning via Hessian-aware pruning,
            arXiv:2306.07030.

    Example:
        >>> import hessprune as hp
        >>> hp.QatConfig(epochs=3).distill_weight
        0.5
    """

    epochs: int = 10
    lr: float = 1e-4
    weight_decay: float = 1e-4
    distill_weight: float = 0.5
    freeze_ranges_at: float = 0.5
    reestimate_batchnorm: bool = False
