import pytest

from hessprune.errors import ArgumentError
from hessprune.lab.comparing import CompareSettings, parse_method
from hessprune.planning.implants import Implant


def test_text_becomes_settings_and_absent_options_keep_their_defaults():
    options = {"methods": "random, hap:hutchinson", "budgets": "0.5", "seeds": "3,4", "lrs": "0.1", "epochs": None}
    asked = CompareSettings.from_text(options | {"compensate": False, "ignore": ["conv1"], "split": "test"})
    assert asked.methods == ("random", "hap:hutchinson")
    assert (asked.budgets, asked.seeds, asked.lrs, asked.epochs) == ((0.5,), (3, 4), (0.1,), 0)
    assert (asked.compensate, asked.ignore, asked.split) == ((False,), ("conv1",), "test")
    assert CompareSettings.from_text({}) == CompareSettings()


def test_methods_carry_what_differs_from_the_recipe():
    assert parse_method("joint") == {"method": "joint"}
    assert parse_method("joint:step=0.2") == {"method": "joint", "step": 0.2}
    assert parse_method("joint:implant") == {"method": "joint", "implant": Implant(share=0.5)}
    assert parse_method("joint:implant=zero") == {"method": "joint", "implant": Implant(share=0.5, start="zero")}
    half = {"method": "hap", "estimator": "hutchinson", "precision": "bf16"}
    assert parse_method("hap:hutchinson:bf16") == half
    asked = {"method": "hap", "estimator": "rademacher", "num_probes": 8}
    assert parse_method("hap:rademacher:probes=8") == asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": "happ"}, r"`methods` must be one of .*got 'happ'. Did you mean 'hap'\?"),
        ({"methods": "hap:hutchison"}, r"option of method 'hap' .*got 'hutchison'. Did you mean 'hutchinson'\?"),
        ({"methods": "hap:probes=0"}, r"option of method 'hap' .*got 'probes=0'"),
        ({"methods": "hap:implant=none"}, r"option of method 'hap' .*got 'implant=none'"),
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
