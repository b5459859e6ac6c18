import torch

import hessprune as hp
from tests.cases import Residual, image, make

X = image(batch=4)
BATCHES = [(X, torch.arange(4))]


def test_saliencies_print_in_one_line_and_never_their_tensors() -> None:
    model = make(Residual)
    values = hp.saliency(model, hp.find_groups(model, X), BATCHES, hp.HAP(precision="fp64"))
    assert repr(values).startswith("Saliency by hap(precision=fp64): ")
    assert "tensor" not in repr(values)
    assert len(str(values).splitlines()) == 1
    assert values._repr_html_().count("<tr>") == len(values) + 1
    assert repr(hp.Saliency({}, provenance={})) == "Saliency of no units"


def test_saliencies_can_be_drawn() -> None:
    model = make(Residual)
    values = hp.saliency(model, hp.find_groups(model, X), BATCHES, "magnitude")
    (axes,) = values.plot().axes
    assert len(axes.lines) == len(values)
    assert axes.get_yscale() == "log"
