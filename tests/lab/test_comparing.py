import pytest

from hessprune.costs.budget import Budget
from hessprune.errors import ArgumentError
from hessprune.lab.comparing import CompareSettings, parse_row, prune_with
from hessprune.lab.settings import PruneSettings
from hessprune.planning.implants import Implant


def test_text_becomes_settings_and_absent_options_keep_their_defaults():
    half = "hap(estimator=hutchinson,precision=bf16)"
    options = {
        "methods": f"random, {half}",
        "budgets": "0.5",
        "seeds": "3,4",
        "lrs": "0.1",
        "epochs": None,
    }
    asked = CompareSettings.from_text(options | {"compensate": False, "ignore": ["conv1"], "split": "test"})
    assert asked.methods == ("random", half)
    assert (asked.budgets, asked.seeds, asked.lrs, asked.epochs) == ((0.5,), (3, 4), (0.1,), 0)
    assert (asked.compensate, asked.ignore, asked.split) == ((False,), ("conv1",), "test")
    assert CompareSettings.from_text({}) == CompareSettings()


def test_rows_carry_what_differs_from_the_recipe():
    assert parse_row("joint") == ("joint", {})
    assert parse_row("joint; step=0.2") == ("joint", {"step": 0.2})
    assert parse_row("joint(temperature=4); implant=0.1; start=zero") == (
        "joint(temperature=4)",
        {"implant": 0.1, "start": "zero"},
    )
    prune = PruneSettings(budget=Budget(macs=0.5))
    assert prune_with(prune, *parse_row("hap; step=0.2")).ranking.step == 0.2
    changed = prune_with(prune, *parse_row("hap; implant=0.1; start=zero; rank=2"))
    assert changed.implant == Implant(share=0.1, start="zero", rank=2)
    assert (changed.method, prune_with(prune, *parse_row("random")).implant) == ("hap", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": "happ"}, r"`method` must be one of .*got 'happ'. Did you mean 'hap'\?"),
        ({"methods": "hap(estimator=hutchison)"}, r"`estimator` must be one of .*Did you mean 'hutchinson'\?"),
        ({"methods": "hap:hutchinson"}, r"`method` must read NAME or NAME\(OPTION=VALUE"),
        ({"methods": "hap; implnt=0.1"}, r"a row of `methods` must change .*Did you mean 'implant'\?"),
        ({"methods": "hap; step=2"}, r"`step` must be"),
        ({"methods": "hap,hap"}, r"`methods` must name at least one and none twice"),
        ({"methods": ""}, r"`methods` must name at least one and none twice, got \[\]"),
        ({"budgets": "0"}, r"`budgets` must be kept shares in \(0, 1\], got 0"),
        ({"budgets": "-0.5"}, r"`budgets` must be kept shares"),
        ({"budgets": "1.5"}, r"`budgets` must be kept shares"),
        ({"budgets": "nan"}, r"`budgets` must be kept shares"),
        ({"budgets": "half"}, r"`budgets` must be numbers with commas, got 'half'"),
        ({"seeds": "-1"}, r"`seeds` must be an integer of at least 0, got -1"),
        ({"seeds": "0.5"}, r"`seeds` must be numbers with commas"),
        ({"epochs": -1}, r"`epochs` must be an integer of at least 0"),
        ({"lrs": "0"}, r"`lrs` must be finite numbers above 0, got 0"),
        ({"quantity": "mac"}, r"`quantity` must be one of .*Did you mean 'macs'\?"),
        ({"channels": "outer"}, r"`channels` must be one of 'all', 'inner'"),
        ({"split": "train"}, r"`split` must be one of 'test', 'validation'"),
    ],
)
def test_wrong_options_are_one_clear_error(options, message):
    with pytest.raises(ArgumentError, match=message):
        CompareSettings.from_text(options)
