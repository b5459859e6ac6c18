"""What to do about a model in which nothing can be removed."""

from collections.abc import Collection

ON_REQUEST = "it is ignored on request"
"""The reason of an axis that `ignore` froze."""


def advice(reasons: Collection[str]) -> str:
    """Return the remedy that fits the reasons for which axes are frozen.

    Example:
        >>> from hessprune.structure.advice import advice
        >>> advice(["the model returns it"])
        'Prune a network with at least one hidden layer.'
    """
    if ON_REQUEST in reasons:
        return "Shorten `ignore`."
    if any("has no rule" in reason for reason in reasons):
        return "Give the operator a rule with hessprune.operators.table.register, or replace it."
    if any("fixed size" in reason for reason in reasons):
        return "Make tensors that meet channels in the likeness of these, as torch.zeros_like does."
    if any("mixes" in reason or "together" in reason for reason in reasons):
        return "Prune a network with at least one hidden layer whose channels no operator mixes."
    return "Prune a network with at least one hidden layer."
