"""HAP as a value: options that fit together, errors where they do not."""

import pytest
import torch
from torch import nn

import hessprune as hp
from tests.cases import Residual, image, make

X = image(batch=4)
BATCHES = [(X, torch.arange(4))]


def test_estimators_agree_and_say_how_sure_they_are() -> None:
    model = make(Residual)
    groups = hp.find_groups(model, X)
    exact = hp.saliency(model, groups, BATCHES, "hap")
    drawn = hp.saliency(model, groups, BATCHES, hp.HAP(estimator="rademacher", num_probes=64, precision="fp64"))
    assert exact.standard_error is None
    assert drawn.standard_error is not None
    for name, values in drawn.items():
        assert bool(((values - exact[name]).abs() <= 6 * drawn.standard_error[name] + 1e-9).all())
    assert drawn.provenance["options"] == "hap(estimator=rademacher,precision=fp64,num_probes=64)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "rademecher"}, r"`estimator` must be one of .*Did you mean 'rademacher'\?"),
        ({"precision": "fp8"}, "`precision` must be one of"),
        ({"num_probes": 10}, "`num_probes` must be None with estimator='exact'"),
        ({"estimator": "hutchinson", "num_probes": 0}, "`num_probes` must be an integer of at least 1"),
        ({"estimator": "hutchinson", "num_probes": 2.5}, "`num_probes` must be an integer or None, got 2.5"),
        ({"until": 3}, "`until` must be Until or None, got 3"),
        ({"memory_limit": 0}, "`memory_limit` must be an integer of at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused_when_the_value_is_made(options: dict, message: str) -> None:
    with pytest.raises(hp.errors.ArgumentError, match=message):
        hp.HAP(**options)
    with pytest.raises(TypeError, match="temperature"):
        hp.HAP(temperature=2)  # type: ignore[call-arg]


class Stream(nn.Module):
    """A residual stream that a table and a layer write, and a norm reads."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(20, 6), nn.Linear(6, 6)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        return self.head(self.norm(x + self.inner(x)).mean(1))


@pytest.mark.parametrize("method", ["hap", "sosp-h", "sosp-i", "nvit", "taylor", "joint"])
def test_layers_speak_for_units_that_a_table_emits_too(method: str) -> None:
    torch.manual_seed(0)
    net, ids = Stream().eval(), torch.randint(20, (12, 5))
    (group,) = hp.find_groups(net, ids, units=("embedding",))
    assert [piece.param for piece in group.slices_with_role("producer")] == ["table.weight", "inner.weight"]
    values = hp.saliency(net, [group], [(ids, torch.arange(12) % 3)], method)[group.name]
    assert values.shape == (6,)
    assert float(values.abs().min()) >= 0
    assert float(values.abs().max()) > 0
