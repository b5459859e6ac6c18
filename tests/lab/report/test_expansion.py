import pytest

from hessprune.errors import DataError
from hessprune.lab.report.expansion import Expansion, Variant, verdict

PLACES = {"dense": 0.90, "bottlenecks by joint": 0.95, "uniform": 0.93, "unchanged": 0.91}


def expansion(spread: float = 0.001) -> Expansion:
    variants = tuple(
        Variant(
            name=name,
            seed=seed,
            widths={"a": 8} if name.startswith("bott") else {},
            accuracy=place + spread * seed * (1 if name == "uniform" else -1),
            loss=0.1,
            macs=100,
            params=50,
        )
        for seed in range(3)
        for name, place in PLACES.items()
    )
    return Expansion(
        title="Net <A>", variants=variants, bottlenecks={"joint": {"0": ["group a", "1 < 2"]}}, notes=("n",)
    )


def test_rows_are_means_with_the_spread_over_seeds():
    row = expansion(0.01).rows[1]
    assert (row.name, row.num_seeds) == ("bottlenecks by joint", 3)
    assert row.accuracy == pytest.approx(0.94)
    assert row.spread == pytest.approx(0.01)
    assert str(row) == "94.0 ± 1.0"


def test_gains_are_paired_by_seed():
    gain, error = expansion(0.001).gains["bottlenecks by joint"]
    assert gain == pytest.approx(2 - 0.2)
    assert error == pytest.approx(0.2 / 3**0.5)
    assert "uniform" not in expansion().gains


@pytest.mark.parametrize(("spread", "words"), [(0.001, "ahead by more than two"), (0.05, "no difference")])
def test_the_verdict_knows_its_error(spread, words):
    assert words in verdict(expansion(spread))


def test_json_there_and_back(tmp_path):
    path = expansion().save(tmp_path / "expansion.json")
    assert Expansion.load(path) == expansion()
    with pytest.raises(DataError, match=r"must be an expansion\.json"):
        Expansion.from_json({"variants": []})
