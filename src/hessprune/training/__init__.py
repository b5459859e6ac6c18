"""Fine-tuning: from a pruned model to a good one, resumable to the step."""

from hessprune.training.batchnorm import reestimate_batchnorm
from hessprune.training.config import EpochRecord, FinetuneConfig, FinetuneResult
from hessprune.training.finetune import finetune

__all__ = ["EpochRecord", "FinetuneConfig", "FinetuneResult", "finetune", "reestimate_batchnorm"]
