"""The sampler chooses by stated rules: checked by counting every case, never by luck."""

import math

import numpy as np
import pytest

from lutra.engine.params import SamplingParams
from lutra.engine.sampler import distribution, exp, make_rng, penalize, sample
from lutra.errors import FileError, RequestError

ALL = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


class Fixed:
    """An rng that draws one stated number."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


def logits_of(*probabilities: float) -> np.ndarray:
    return np.log(np.array(probabilities)).astype(np.float32)


def survivors(logits: np.ndarray, **params) -> list[int]:
    return distribution(logits, SamplingParams(**(ALL | {"temperature": 1.0} | params)))[0].tolist()


def test_temperature_zero_takes_the_first_of_the_largest():
    logits = np.array([1, 3, 3, 2], np.float32)
    assert sample(logits, SamplingParams(temperature=0), make_rng(1)) == 1


def test_top_k_keeps_the_lowest_ids_among_equals():
    assert survivors(np.array([1, 2, 1, 1, 3], np.float32), top_k=3) == [0, 1, 4]
    assert survivors(np.array([1, 1, 1, 1], np.float32), top_k=2) == [0, 1]


def test_top_p_keeps_the_token_that_reaches_the_share():
    logits = logits_of(0.1, 0.5, 0.1, 0.3)
    assert survivors(logits, top_p=0.49) == [1]
    assert survivors(logits, top_p=0.6) == [1, 3]
    assert survivors(logits, top_p=0.85) == [0, 1, 3]  # of the two tenths the lower id
    assert survivors(logits, top_p=1e-9) == [1]


def test_top_p_looks_at_probabilities_before_temperature():
    assert survivors(logits_of(0.6, 0.3, 0.1), top_p=0.7, temperature=50.0) == [0, 1]


def test_top_p_follows_top_k():
    # among the two best, 0.5 and 0.3, the first has a share of 0.625
    assert survivors(logits_of(0.5, 0.3, 0.2), top_k=2, top_p=0.6) == [0]


def test_min_p_is_relative_to_the_best():
    assert survivors(logits_of(0.5, 0.26, 0.24), min_p=0.5) == [0, 1]
    assert survivors(logits_of(0.5, 0.5), min_p=1.0) == [0, 1]


@pytest.mark.parametrize("size", [255, 256, 257, 5000])
def test_top_p_equals_a_full_sort_around_the_first_cut(size):
    weights = np.random.default_rng(size).standard_normal(size).astype(np.float32).round(1)  # many ties
    for top_p in (0.3, 0.9, 0.999):
        order = np.argsort(-weights, kind="stable")
        share = np.cumsum(np.exp(weights[order].astype(np.float64)))
        count = int(np.searchsorted(share, top_p * share[-1])) + 1
        assert survivors(weights, top_p=top_p) == sorted(order[:count].tolist())


def test_draw_inverts_the_distribution_exactly():
    """Every number an rng can draw falls into the interval of its token: count 1000 of them, evenly spread."""
    logits = np.log(np.array([2, 0, 5, 3], np.float64) + 1e-300).astype(np.float32)
    logits[1] = -np.inf
    params = SamplingParams(temperature=1.0, **ALL)
    tokens = [sample(logits, params, Fixed((i + 0.5) / 1000)) for i in range(1000)]  # type: ignore[arg-type]
    assert np.bincount(tokens, minlength=4).tolist() == [200, 0, 500, 300]
    assert tokens == sorted(tokens)


def test_largest_draw_stays_inside():
    logits = np.zeros(7, np.float32)
    assert sample(logits, SamplingParams(**ALL), Fixed(math.nextafter(1.0, 0.0))) == 6  # type: ignore[arg-type]
    assert sample(logits, SamplingParams(**ALL), Fixed(0.0)) == 0  # type: ignore[arg-type]


def test_temperature_reshapes():
    ids, weights = distribution(logits_of(0.8, 0.2), SamplingParams(temperature=0.5, **ALL))
    np.testing.assert_allclose(weights / weights.sum(), [16 / 17, 1 / 17], rtol=1e-6)
    ids, weights = distribution(logits_of(0.8, 0.2), SamplingParams(temperature=1e-300, **ALL))
    assert weights.tolist() == [1.0, 0.0]


def test_seed_repeats_and_differs():
    logits = np.zeros(1000, np.float32)
    draws = [[sample(logits, SamplingParams(**ALL), rng) for _ in range(8)]
             for rng in (make_rng(7), make_rng(7), make_rng(8))]
    assert draws[0] == draws[1] != draws[2]
    assert make_rng(-1).random() == make_rng((1 << 64) - 1).random()


def test_seed_gives_these_tokens():
    """A golden: what a seed means must not change from one version or machine to the next."""
    logits = np.linspace(0, 3, 50).astype(np.float32)
    rng = make_rng(42)
    assert [sample(logits, SamplingParams(temperature=1.0, **ALL), rng) for _ in range(6)] == GOLDEN


GOLDEN = [46, 37, 47, 44, 17, 49]


def test_exp_is_exp():
    x = -np.concatenate([np.linspace(0, 40, 4001), np.geomspace(1e-12, 707, 400)])
    np.testing.assert_allclose(exp(x), [math.exp(value) for value in x], rtol=5e-16)
    assert exp(np.array([-np.inf, -1e300, 0.0])).tolist() == [0.0, 0.0, 1.0]


def test_penalty_divides_positive_and_multiplies_negative():
    logits = np.array([2, -2, 3, -3], np.float32)
    assert penalize(logits, 2.0, [0, 1, 1]).tolist() == [1, -4, 3, -3]
    assert penalize(logits, 2.0, []).tolist() == logits.tolist()
    assert sample(logits, SamplingParams(temperature=0, repetition_penalty=2.0), make_rng(0), [2]) == 0


@pytest.mark.parametrize("broken", [[np.nan, 1], [np.inf, 1], [-np.inf, -np.inf]])
def test_broken_logits_are_refused(broken):
    with pytest.raises(FileError, match="finite"):
        sample(np.array(broken, np.float32), SamplingParams(), make_rng(0))


@pytest.mark.parametrize("bad", [
    {"temperature": -0.1}, {"temperature": math.nan}, {"temperature": "hot"}, {"temperature": True},
    {"top_p": 0}, {"top_p": 1.01}, {"top_k": 1.5}, {"top_k": -2}, {"min_p": -1}, {"max_tokens": 0},
    {"max_tokens": 1.0}, {"repetition_penalty": 0}, {"seed": 1 << 64}, {"seed": "x"}, {"ignore_eos": 1},
    {"stop": 3}, {"stop": [""]}, {"stop": ["a"] * 65}, {"stop": [1]}, {"stop": ["a" * 2000]},
])
def test_params_outside_their_range_are_refused(bad):
    with pytest.raises(RequestError, match=next(iter(bad))):
        SamplingParams(**bad)


def test_params_take_what_clients_send():
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams(temperature=1, top_k=-1, seed=-5).top_k == -1
