"""hessprune: smaller, faster neural networks from second-order information.

A model goes in at the top, a smaller model and a report come out at the bottom; between each pair of stages there is
one small value that can be printed, saved and tested: groups → saliency → plan → surgery → fine-tune → export.
"""

# errors first: everything below may raise them
from hessprune.errors import (
    ArgumentError,
    BudgetError,
    CheckpointError,
    DataError,
    HessPruneError,
    MissingDependencyError,
    NumericalError,
    OutputError,
    RecipeError,
    UnsupportedModelError,
    VerificationError,
)
from hessprune.structure.groups import Frozen, Group, Groups, Slice
from hessprune.structure.find import find_groups
from hessprune.curvature import TraceOptions, TraceResult, Until
from hessprune.methods import Saliency, Settings, hessian_trace, saliency
from hessprune.costs.budget import Budget
from hessprune.costs.model import Cost, cost
from hessprune.planning.implants import Implant
from hessprune.costs.latency_table import LatencyTable
from hessprune.planning.plan import Plan
from hessprune.planning.planner import make_plan
from hessprune.planning.ranking import Ranking
from hessprune.planning.removal import removal_for
from hessprune.surgery.apply import apply_plan
from hessprune.surgery.compensation import compensate
from hessprune.surgery.verify import verify
from hessprune.training import FinetuneConfig, finetune, reestimate_batchnorm
from hessprune.deploy.evaluation import evaluate
from hessprune.latency.measure import compare_latency, measure_latency
from hessprune.deploy.export import export_onnx
from hessprune.quantize import QatConfig, QuantizedModel, Scheme, calibrate, convert_qat, prepare_qat
from hessprune.quantize import LayerSensitivity, choose_fp32_layers, quantization_sensitivity
from hessprune.latency import LatencyTarget, latency_table
from hessprune.surgery.checkpoint import load, save
from hessprune.pruning.prune import PruneResult, prune
from hessprune.lab.report.comparison import Comparison
from hessprune.lab.comparing import CompareSettings
from hessprune.lab.compare import compare

__version__ = "0.1.0"

__all__ = [
    # one call
    "prune",
    "PruneResult",
    # structure
    "find_groups",
    "Group",
    "Groups",
    "Slice",
    "Frozen",
    # curvature and saliency
    "hessian_trace",
    "TraceResult",
    "TraceOptions",
    "Until",
    "saliency",
    "Saliency",
    "Settings",
    # planning
    "Budget",
    "Ranking",
    "Implant",
    "cost",
    "Cost",
    "make_plan",
    "Plan",
    "removal_for",
    # latency tables
    "latency_table",
    "LatencyTable",
    "LatencyTarget",
    # surgery and checkpoints
    "apply_plan",
    "verify",
    "compensate",
    "save",
    "load",
    # training and evaluation
    "finetune",
    "FinetuneConfig",
    "reestimate_batchnorm",
    "evaluate",
    "measure_latency",
    "compare_latency",
    "export_onnx",
    # INT8
    "prepare_qat",
    "calibrate",
    "convert_qat",
    "QuantizedModel",
    "QatConfig",
    "quantization_sensitivity",
    "LayerSensitivity",
    "choose_fp32_layers",
    "Scheme",
    # whole runs
    "compare",
    "CompareSettings",
    "Comparison",
    # errors
    "HessPruneError",
    "ArgumentError",
    "BudgetError",
    "CheckpointError",
    "DataError",
    "MissingDependencyError",
    "NumericalError",
    "OutputError",
    "RecipeError",
    "UnsupportedModelError",
    "VerificationError",
]
