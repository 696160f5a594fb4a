import pytest

from attnseg.schedules.schedule import Constant, Cosine, Poly


def test_warm_up_rises_to_one_and_never_rests_at_zero():
    factors = [Constant(warmup=0.1)(step, 100) for step in range(100)]
    assert 0 < factors[0] < factors[5] < factors[9] < 1
    assert factors[10:] == [1.0] * 90


def test_cosine_by_hand():
    schedule = Cosine(final=0.1)
    assert [round(schedule(step, 4), 4) for step in range(5)] == [1.0, 0.8682, 0.55, 0.2318, 0.1]


def test_poly_is_the_published_one():
    """(1 - step / steps) ** 0.9"""
    schedule = Poly(power=0.9)
    assert schedule(0, 10) == 1
    assert schedule(5, 10) == pytest.approx(0.5**0.9)
    assert schedule(10, 10) == 0


@pytest.mark.parametrize(
    "make", [lambda: Cosine(warmup=1.0), lambda: Poly(final=2), lambda: Poly(power=0)]
)
def test_out_of_range(make):
    with pytest.raises(ValueError, match="must be"):
        make()
