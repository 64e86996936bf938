import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziphius.cost.interval import Interval

positive = st.floats(1e-6, 1e12)
factor = st.floats(1.0, 3.0)


@given(positive, factor, positive, factor)
def test_products_and_sums_contain_their_points(a, wide_a, b, wide_b):
    one, two = Interval.within(a, wide_a), Interval.within(b, wide_b)
    for made in (one.times(two), one.plus(two), one.inverse(b), one.scaled(b)):
        assert made.low <= made.point <= made.high


@given(positive, factor, factor)
def test_independent_errors_add_in_quadrature(point, first, second):
    made = Interval.within(point, first).times(Interval.within(1.0, second))
    assert math.log(made.high / made.point) == pytest.approx(math.hypot(math.log(first), math.log(second)), abs=1e-9)


def test_bounds_must_contain_the_point():
    with pytest.raises(ValueError, match="must contain its point"):
        Interval(1.0, 2.0, 3.0)


def test_json():
    assert Interval(2.0, 1.0, 4.0).inverse(8.0).as_dict() == {"point": 4.0, "low": 2.0, "high": 8.0}
