"""What to do about a model in which nothing can be removed."""

from collections.abc import Collection

ON_REQUEST = "it is ignored on request"
"""The reason of an axis that `ignore` froze."""

_COMPUTED = "is computed, not a parameter"


def telling(reasons: Collection[str]) -> list[str]:
    """Return reasons in order, those for which no width of a layer is known first.

    Example:
        >>> from hessprune.structure.advice import telling
        >>> telling(["the model returns it", "the linear layer's weight is computed, not a parameter"])[0]
        "the linear layer's weight is computed, not a parameter"
    """
    return sorted(reasons, key=lambda reason: (_COMPUTED not in reason, reason))


def advice(reasons: Collection[str]) -> str:
    """Return the remedy that fits the reasons for which axes are frozen.

    Example:
        >>> from hessprune.structure.advice import advice
        >>> advice(["the model returns it"])
        'Prune a network with at least one hidden layer.'
    """
    if ON_REQUEST in reasons:
        return "Shorten `ignore`."
    if any("fake_quant" in reason for reason in reasons):
        return "Prune the model before quantisers are put into it."
    if any("recurrent" in reason for reason in reasons):
        return "Prune a network with a hidden layer behind the recurrent ones, which stay, as do layers in front."
    if any("has no rule" in reason for reason in reasons):
        return "Give the operator a rule with hessprune.operators.table.register, or replace it."
    if any(_COMPUTED in reason for reason in reasons):
        return (
            "Put plain layers, as nn.Conv2d or nn.Linear, in the place of these, and copy the computed weights into "
            "them as parameters: they compute the same."
        )
    if any("fixed size" in reason for reason in reasons):
        return "Make tensors that meet channels in the likeness of these, as torch.zeros_like does."
    if any("'mean' reduces" in reason or "together" in reason for reason in reasons):
        return (
            "Prune a network with a hidden layer whose channels no operator mixes; or let channels go that a norm "
            "normalises, with units=('embedding',)."
        )
    if any("mixes" in reason for reason in reasons):
        return "Prune a network with at least one hidden layer whose channels no operator mixes."
    return "Prune a network with at least one hidden layer."
