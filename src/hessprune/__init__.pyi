# ruff: noqa: I001 - the names stand in the order of a pruning, not of the alphabet
# The public names, by stage: types for checkers, and the table from which `__init__.py` imports them when used.

# one call
from hessprune.pruning.prune import prune as prune
from hessprune.pruning.prune import PruneResult as PruneResult
from hessprune.pruning.measuring import measure as measure
from hessprune.pruning.statistics import Statistics as Statistics
from hessprune.pruning.callback import PruneCallback as PruneCallback

# structure
from hessprune.structure.find import find_groups as find_groups
from hessprune.structure.groups import Group as Group
from hessprune.structure.groups import Groups as Groups

# methods
from hessprune.methods.scoring import saliency as saliency
from hessprune.methods.values import Saliency as Saliency
from hessprune.methods.method import Method as Method
from hessprune.methods.joint import Joint as Joint
from hessprune.methods.hap import HAP as HAP
from hessprune.methods.sosp_h import SOSPH as SOSPH
from hessprune.methods.sosp_i import SOSPI as SOSPI
from hessprune.methods.nvit import NViT as NViT
from hessprune.methods.taylor import Taylor as Taylor
from hessprune.methods.bn_scale import BNScale as BNScale
from hessprune.methods.magnitude import Magnitude as Magnitude
from hessprune.methods.random import Random as Random

# curvature
from hessprune.methods.trace import hessian_trace as hessian_trace
from hessprune.curvature.results import TraceResult as TraceResult
from hessprune.curvature.stopping import Until as Until

# costs and planning
from hessprune.costs.model import cost as cost
from hessprune.costs.model import Cost as Cost
from hessprune.costs.budget import Budget as Budget
from hessprune.planning.ranking import Ranking as Ranking
from hessprune.planning.planner import make_plan as make_plan
from hessprune.planning.plan import Plan as Plan
from hessprune.planning.removal import removal_for as removal_for
from hessprune.planning.implants import Implant as Implant

# surgery and checkpoints
from hessprune.surgery.apply import apply_plan as apply_plan
from hessprune.surgery.compensation import compensate as compensate
from hessprune.surgery.verify import verify as verify
from hessprune.surgery.checkpoint import save as save
from hessprune.surgery.checkpoint import load as load

# bottlenecks and widening
from hessprune.bottlenecks.find import find_bottlenecks as find_bottlenecks
from hessprune.bottlenecks.values import Bottlenecks as Bottlenecks
from hessprune.bottlenecks.reallocate import reallocate as reallocate
from hessprune.surgery.widening import widen as widen
from hessprune.planning.widening import Widening as Widening

# training and evaluation
from hessprune.training.finetune import finetune as finetune
from hessprune.training.config import FinetuneConfig as FinetuneConfig
from hessprune.training.batchnorm import reestimate_batchnorm as reestimate_batchnorm
from hessprune.deploy.evaluation import evaluate as evaluate

# INT8 and export
from hessprune.quantize.qat import prepare_qat as prepare_qat
from hessprune.quantize.qat import calibrate as calibrate
from hessprune.quantize.qat import convert_qat as convert_qat
from hessprune.quantize.config import QatConfig as QatConfig
from hessprune.quantize.config import Scheme as Scheme
from hessprune.quantize.sensitivity import quantization_sensitivity as quantization_sensitivity
from hessprune.quantize.choice import choose_fp32_layers as choose_fp32_layers
from hessprune.deploy.export import export_onnx as export_onnx

# milliseconds
from hessprune.latency.measure import measure_latency as measure_latency
from hessprune.latency.measure import compare_latency as compare_latency
from hessprune.latency.table import latency_table as latency_table
from hessprune.costs.latency_table import LatencyTable as LatencyTable
from hessprune.costs.target import LatencyTarget as LatencyTarget

# progress bars around anything long
from hessprune.foundation.bars import show_progress as show_progress

# whole runs
from hessprune.lab.compare import compare as compare
from hessprune.lab.comparing import CompareSettings as CompareSettings
from hessprune.lab.report.comparison import Comparison as Comparison

# errors: the others live in `hessprune.errors`
from hessprune import errors as errors
from hessprune.errors import HessPruneError as HessPruneError

__version__: str
