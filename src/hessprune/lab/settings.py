"""What a run is asked to do: plain immutable values, one per section of a recipe, checked on construction."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from hessprune.costs.budget import Budget
from hessprune.costs.target import LatencyTarget
from hessprune.errors import ArgumentError
from hessprune.foundation.checks import check_choice, check_range
from hessprune.foundation.formatting import shown
from hessprune.lab.data.sentences import LARGEST_LENGTH
from hessprune.lab.losses import loss_by_name
from hessprune.lab.models.zoos import ZooName
from hessprune.methods.text import as_method
from hessprune.planning.implants import Implant, check_no_stand_ins
from hessprune.planning.ranking import Ranking
from hessprune.quantize.backend import find_backend
from hessprune.quantize.config import QatConfig, Scheme
from hessprune.training.config import FinetuneConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSettings:
    """Where the data come from and how they are split and read.

    Attributes:
        source: A name that `hessprune.lab.data.load_dataset` knows.
        root: File or folder, relative to the data root; not for built-in data.
        mean: Normalisation that pretrained weights expect, one number per channel; the data's own by default.
        std: As `mean`.
        validation_size: Training samples held out for choices; a tenth by default.
        calibration_size: Training samples, without augmentation, on which saliency is estimated.
        test_size: Test samples that the report looks at, the first ones; all of them by default.
        batch_size: Samples in a batch, for training and evaluation.
        augment: Crop and flip the training images, as far as that suits the data.
        tokenizer: For sentences: a `tokenizer.json`, or a folder with one, relative to the data root; that of the
            model in `hf:FOLDER` by default.
        max_length: For sentences: tokens, special ones included; what is longer is cut. For running text: tokens of
            a sequence.
        sort: For sentences: batches of sentences of about one length, which need less padding.
    """

    source: str = "digits"
    root: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    validation_size: int | None = None
    calibration_size: int = 512
    test_size: int | None = None
    batch_size: int = 128
    augment: bool = True
    tokenizer: str | None = None
    max_length: int = 128
    sort: bool = False

    def __post_init__(self) -> None:
        check_range("batch_size", self.batch_size, low=1, integer=True)
        check_range("max_length", self.max_length, low=1, high=LARGEST_LENGTH, integer=True)
        if (self.mean is None) != (self.std is None):
            raise ArgumentError("`mean` and `std` must be given together, got one of them. Add the other.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """The network, and where its weights come from.

    Attributes:
        name: A name of the registry; `timm:NAME` or `torchvision:NAME`; `hf:FOLDER`, a Hugging Face model with its
            weights, relative to the data root or in an installed package; `package.module:factory`; or
            `path/to/file.py:factory`.
        weights: A checkpoint, relative to the data root.
        pretrain: How to train the dense network, instead of `weights`: from scratch, or from the weights in a FOLDER.
        channels_last: Lay images out with their channels last, as convolutions like them in 16 bits: the same numbers,
            in two thirds to four fifths of the time on a processor with bfloat16. A model that calls `view` may refuse.
    """

    name: str = "digits-resnet"
    weights: str | None = None
    pretrain: FinetuneConfig | None = None
    channels_last: bool = False

    def __post_init__(self) -> None:
        zoo = ZooName.read(self.name)
        if zoo is not None and zoo.has_weights and self.weights is None:
            return
        if (self.weights is None) == (self.pretrain is None):
            found = "neither" if self.weights is None else "both"
            raise ArgumentError(
                f"`model` must have either `weights` or `pretrain`, got {found}. Name a checkpoint, or how to train."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneSettings:
    """The units that go.

    Attributes:
        budget: What may be left.
        method: A criterion with its options: `joint`, `hap(estimator=hutchinson,precision=bf16)`.
        ranking: Floors, rounding, layers that stay, and the step after which saliencies are measured anew.
        compensate: Refit the surviving layers to the dense layers' outputs, and re-estimate BatchNorm statistics,
            on the calibration samples, where that lowers the loss.
        sequential: Refit, if at all, one block of a stack at a time, as `hp.prune(sequential=True)` does.
        implant: The units that keep a low-rank stand-in, and its form; none if left out.
        latency: Where the milliseconds of a budget of time are measured; as in the report if left out.
    """

    budget: Budget
    method: str = "joint"
    ranking: Ranking = field(default_factory=Ranking)
    compensate: bool = True
    sequential: bool = False
    implant: Implant | None = None
    latency: LatencyTarget | None = None

    def __post_init__(self) -> None:
        check_no_stand_ins(self.implant or Implant(share=0.0), self.budget)
        if not isinstance(self.method, str):
            raise ArgumentError(f"`method` must be text such as 'joint', got {shown(self.method)}.")
        object.__setattr__(self, "method", str(as_method(self.method)))  # one way to write each method


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeSettings:
    """How the fine-tuned model becomes `int8.onnx`; the fine-tuned model teaches it.

    Attributes:
        target: The runtime that quantisers are placed for: `onnxruntime`, `openvino`, `x86-inductor`, or a backend that
            you add.
        activations: `asymmetric` (uint8) or `symmetric` (int8).
        weight_bits: 7 for x86 processors without VNNI, whose kernels overflow with 8.
        keep_fp32: Patterns of the names of layers that stay in FP32, or `"auto"`: the most sensitive ones, as few
            as hold the tolerance.
        tolerance: With `"auto"`, points of accuracy on the validation images that INT8 may lose before it is trained.
        train: Training with rounding: the keys of `finetune` with the defaults epochs 10, lr 1e-4, weight_decay 1e-4,
            distill_weight 0.5, freeze_ranges_at 0.5; of 0 epochs, activation ranges are calibrated and that is all.
    """

    target: str = "onnxruntime"
    activations: Literal["asymmetric", "symmetric"] = "asymmetric"
    weight_bits: Literal[7, 8] = 7
    keep_fp32: tuple[str, ...] | Literal["auto"] = ()
    tolerance: float = 0.5
    train: QatConfig = field(default_factory=QatConfig)

    def __post_init__(self) -> None:
        check_range("tolerance", self.tolerance, low=0, high=100)
        find_backend(self.target).check_grids(self.activations, self.weight_bits)

    @property
    def scheme(self) -> Scheme:
        """The grids."""
        return Scheme(target=self.target, activations=self.activations, weight_bits=self.weight_bits)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSettings:
    """What is written beside the model folder.

    Attributes:
        onnx: Write `model.onnx`, for any batch size and any length of sentences, checked in ONNX Runtime.
    """

    onnx: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSettings:
    """What the report compares.

    Attributes:
        title: What the headline calls the network; its name by default.
        baselines: Magnitude and random at the same budget: not at all, in one step, or also fine-tuned alike.
        curve: Shares of the MACs at which every method is applied, without training, for accuracy against cost.
        draws: Draws of the calibration samples for the curve; from two on it has error bars.
        refits: `both`: the curve is also drawn without the refit; `own`: as `prune.compensate` says.
        latency_repeats: Timed forward passes of each model on one thread.
        latency_batch_size: Samples in each of them.
    """

    title: str | None = None
    baselines: bool | Literal["finetuned"] = True
    curve: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    draws: int = 1
    refits: Literal["own", "both"] = "own"
    latency_repeats: int = 50
    latency_batch_size: int = 1

    def __post_init__(self) -> None:
        for fraction in self.curve:
            check_range("curve", fraction, low=0.01, high=1)
        check_choice("refits", self.refits, ("own", "both"))
        for name in ("draws", "latency_repeats", "latency_batch_size"):
            check_range(name, getattr(self, name), low=1, integer=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """A whole run; `recipe.load_recipe` reads one from YAML.

    Attributes:
        model: The network.
        prune: Which units go.
        loss: `cross_entropy`, `mse`, `bce_with_logits`, `next_word`, or `package.module:function`: the loss of every
            stage. With `next_word`, for language models, pruning is judged by the dense model, and all else by
            perplexity.
        seed: Decides splits, initial weights and probes; added to the seeds of the training stages.
        threads: CPU threads of torch; its own choice by default. Small networks are fastest on one.
        device: Where the work is done; `"auto"` takes an accelerator where torch sees one.
        data: The images or sentences.
        finetune: How the pruned network is trained.
        quantize: Integers at the end, if given; all models are then timed in ONNX Runtime.
        export: Further files.
        report: What is compared.
    """

    model: ModelSettings
    prune: PruneSettings
    loss: str = "cross_entropy"
    seed: int = 0
    threads: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataSettings = field(default_factory=DataSettings)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    quantize: QuantizeSettings | None = None
    export: ExportSettings = field(default_factory=ExportSettings)
    report: ReportSettings = field(default_factory=ReportSettings)

    def __post_init__(self) -> None:
        loss_by_name(self.loss)
        check_range("seed", self.seed, low=0, integer=True)
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        if self.threads is not None:
            check_range("threads", self.threads, low=1, high=1024, integer=True)

    def to_json(self) -> dict[str, Any]:
        """Return all settings, defaults included, as nested dicts and lists that equal their own JSON round trip."""
        return as_json(self)


def as_json(settings: Any) -> Any:
    """Turn settings into nested dicts and lists; a budget shows the one quantity that it sets, and its target."""
    if isinstance(settings, Budget):
        target = {"target": as_json(settings.target)} if isinstance(settings.target, LatencyTarget) else {}
        return {settings.quantity: settings.value} | target
    if dataclasses.is_dataclass(settings):
        return {item.name: as_json(getattr(settings, item.name)) for item in dataclasses.fields(settings)}
    return [as_json(item) for item in settings] if isinstance(settings, tuple | list) else settings
