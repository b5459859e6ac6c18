"""Names of stages as people say them: their folders have names such as `2-saliency-hap`."""

STAGES = {
    "dense": "the dense model",
    "saliency": "measuring saliency,",
    "latency": "timing",
    "plan": "choosing units,",
    "step": "choosing units of one step,",
    "pruned": "cutting and refitting,",
    "finetuned": "fine-tuning,",
    "measured": "evaluating,",
    "cell": "one cell,",
    "curve": "accuracy against cost,",
    "onnx": "exporting to ONNX,",
    "int8": "training with rounding for INT8",
    "bottlenecks": "looking for bottlenecks,",
    "reallocated": "reallocating units,",
    "widened": "training the wider model,",
}
"""The work of each kind of stage."""


def spoken_stage(label: str) -> str:
    """Return what a stage is called; other labels stay as they are.

    Example:
        >>> from hessprune.lab.stage_names import spoken_stage
        >>> spoken_stage("2-saliency-hap"), spoken_stage("least squares")
        ('measuring saliency, hap', 'least squares')
    """
    number, _, rest = label.partition("-")
    kind, _, own = rest.partition("-")
    if not number.isdecimal() or kind not in STAGES:
        return label
    return f"{STAGES[kind]} {own.replace('-', ' ')}".rstrip(" ,")
