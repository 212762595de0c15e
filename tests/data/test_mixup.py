from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, kstest

from vitscale.data.mixup import mixing_share


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_follow_the_beta_distribution_and_belong_to_seed_and_step(alpha: float) -> None:
    shares = [mixing_share(3, step, alpha) for step in range(2000)]
    assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 0.01
    assert shares[7] == mixing_share(3, 7, alpha)
    assert shares[7] != mixing_share(4, 7, alpha)
    assert np.abs(np.corrcoef(shares[:-1], shares[1:])[0, 1]) < 0.07


def test_without_mixup_an_image_keeps_all_of_itself() -> None:
    assert mixing_share(3, 7, 0.0) == 1.0
