import numpy as np
import pytest

from vitscale.analysis.residuals import seed_spread


def test_seeds_spread_is_what_test_images_do_not_explain() -> None:
    rng = np.random.default_rng(0)
    places, trials = 200, 20_000
    odds = rng.normal(-1.0, 0.2, (places, 5))
    y = rng.binomial(trials, 1 / (1 + np.exp(-odds))) / trials
    inputs = np.repeat(np.arange(1.0, places + 1), 5)[:, None]
    assert seed_spread(y.ravel(), np.full(1000, float(trials)), inputs) == pytest.approx(0.2, rel=0.1)
    same = rng.binomial(100, 0.3, (places, 5)) / 100
    assert seed_spread(same.ravel(), np.full(1000, 100.0), inputs) < 0.08
    assert seed_spread(y[:, 0], np.full(places, float(trials)), inputs[::5]) == 0.0
