"""Rates: given, quoted, taken from a card alike, owned."""

import pytest

from ziphius.cost.data import DataError
from ziphius.cost.money import energy_per_gpu_hour, owned_rate, rental_rate


def test_what_is_given_goes_before_quotes(tables):
    h100 = tables.accelerator("h100")
    assert rental_rate(h100, tables, dollars=1.39).dollars.as_dict() == {"point": 1.39, "low": 1.39, "high": 1.39}
    quoted = rental_rate(h100, tables)
    assert quoted.dollars.point == 3.62
    assert "quotes from $2.45 to $12.29" in quoted.what
    assert rental_rate(h100, tables, market="contract").dollars.point == 1.30
    with pytest.raises(DataError, match="give --rate"):
        rental_rate(h100, tables, market="moon")


@pytest.mark.parametrize(
    ("gpu", "like"), [("b300", "b200"), ("gb300", "gb200"), ("h20", "h"), ("epyc-9755", "cpu-2core")]
)
def test_every_accelerator_has_a_rate(tables, gpu, like):
    rate = rental_rate(tables.accelerator(gpu), tables)
    assert f"no quote of {gpu}, so {like}" in rate.what
    assert rate.dollars.low < rate.dollars.point < rate.dollars.high
    assert 0.1 < rate.dollars.point < 10


def test_owning_is_priced_from_quotes_or_from_the_cards_price(tables):
    quoted = owned_rate(tables.accelerator("h100"), tables)
    assert quoted.dollars.low < 1.30 < 1.69 < quoted.dollars.high
    h800 = owned_rate(tables.accelerator("h800"), tables)
    capital = 33_800 * 1.64 / 0.81 * 0.32 / 8760
    energy = 1.73 * 0.75 * 0.0826
    assert h800.dollars.point == pytest.approx(capital + energy)
    assert owned_rate(tables.accelerator("gb300"), tables) is None


def test_energy_counts_the_server_and_the_cooling(tables):
    drawn = energy_per_gpu_hour(tables.accelerator("h100"), tables)
    assert drawn.point == pytest.approx(1.73 * 0.75)
    assert drawn.point > 0.7
