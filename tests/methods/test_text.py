"""Methods as text and back."""

import pytest

import hessprune as hp
from hessprune.methods.text import as_method, split_methods

VALUES = [
    hp.Random(),
    hp.Random(seed=7),
    hp.Magnitude(),
    hp.BNScale(),
    hp.Taylor(precision="bf16"),
    hp.HAP(),
    hp.HAP(estimator="hutchinson", precision="bf16", num_probes=30),
    hp.SOSPH(memory_limit=1000),
    hp.SOSPI(interaction_rows=64),
    hp.Joint(temperature=4.0, refit=False),
    hp.Joint(),
]


@pytest.mark.parametrize("method", VALUES, ids=str)
def test_text_and_value_mean_the_same(method: hp.Method) -> None:
    assert as_method(str(method)) == method
    assert as_method(method) is method


def test_spaces_and_empty_options_are_welcome() -> None:
    assert as_method(" hap ( estimator = exact , precision = fp32 ) ") == hp.HAP()
    assert as_method("joint()") == hp.Joint()
    assert as_method("joint(temperature=auto,refit=none)") == hp.Joint()
    assert as_method("joint(temperature=4)") == hp.Joint(temperature=4)
    assert split_methods("a,b(c=d,e=f), g") == ("a", "b(c=d,e=f)", "g")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("happ", r"`method` must be one of .*got 'happ'. Did you mean 'hap'\?"),
        ("hap:hutchinson", r"`method` must read NAME or NAME\(OPTION=VALUE"),
        ("hap(hutchinson)", r"option of method 'hap' must read NAME=VALUE, got 'hutchinson'"),
        ("hap(estimater=exact)", r"option of method 'hap' .*Did you mean 'estimator'\?"),
        ("hap(estimator=hutchison)", r"`estimator` must be one of .*Did you mean 'hutchinson'\?"),
        ("hap(num_probes=many)", "`num_probes` must be an integer or None, got 'many'"),
        ("magnitude(x=1)", "option of method 'magnitude' must read NAME=VALUE, got 'x=1'. It has none."),
        ("", r"`method` must read NAME"),
    ],
)
def test_wrong_text_is_one_clear_error(text: str, message: str) -> None:
    with pytest.raises(hp.errors.ArgumentError, match=message):
        as_method(text)


def test_wrong_values_are_one_clear_error() -> None:
    with pytest.raises(hp.errors.ArgumentError, match=r"got the class HAP. Write hp.HAP\(\)"):
        as_method(hp.HAP)  # type: ignore[arg-type]
    with pytest.raises(hp.errors.ArgumentError, match="`method` must be a name such as 'joint'"):
        as_method(3)  # type: ignore[arg-type]
