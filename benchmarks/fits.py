"""The estimators of `vitscale fit`: what they find beside thousands of starts, how long they take, what they cover.

The peer is written by hand: equation 3 of arXiv 2203.15556 in the paper's own parameters (a, b, e, alpha, beta), and
SciPy's L-BFGS with an analytic gradient from each of 4,500 starts: the paper's grid, or as many at random within it.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import cpuinfo
import numpy as np
import scipy
from scipy.optimize import minimize
from scipy.special import ndtri
from tables import at_least, table

from vitscale.analysis.assess import assess
from vitscale.analysis.fits import Fit, Observations, fit
from vitscale.analysis.forms import FORMS
from vitscale.analysis.intervals import sample
from vitscale.analysis.isoflop import isoflop
from vitscale.analysis.profiles import profiles
from vitscale.analysis.residuals import Binomial, LogLoss, seed_spread
from vitscale.analysis.selftest import CHINCHILLA, ladder_fit, theta_of
from vitscale.analysis.tables import Columns, Curve

DELTA = 1e-3
GRID = {  # arXiv 2203.15556, appendix D.3
    "a": np.arange(0.0, 30.0, 5.0),
    "b": np.arange(0.0, 30.0, 5.0),
    "e": np.arange(-1.0, 1.5, 0.5),
    "alpha": np.arange(0.0, 2.5, 0.5),
    "beta": np.arange(0.0, 2.5, 0.5),
}
NOISE = 0.01  # of log loss
SATURATING = {"a": 0.08, "b": 3.0, "c": 0.22}
POWER = {"b": 20.0, "c": 0.05}
TRIALS = 10_000
PLACES = 20  # of errors at most; their runs differ in seed
FEW = (5, 8, 12, 16, 24)  # runs, one a place, as most studies have
TRUNKS, BRANCHES = (4, 6, 12), 8  # trunks, and points of each
SHARED = 0.8  # of the noise's variance: what the points of a trunk have in common
TAUS = (0.1, 0.3, 0.6)  # of the log odds over seeds; the study data_size has 0.17 and 0.27 for its fine-tuned digits
COVERED = (0.88, 0.98)  # what 95 % intervals in range have to hold; those of few clusters may hold more
INSIDE = {  # the range of the designs
    "parametric": np.exp(np.linspace(np.log([1e8, 3e9]), np.log([5e9, 6e11]), 5)),
    "saturating": np.geomspace(3e3, 3e8, 5)[:, None],
    "power": np.geomspace(1e15, 1e18, 5)[:, None],
}
PROFILES = ((6, 4, 1), (6, 7, 1), (9, 9, 1), (4, 5, 3))  # budgets, sizes, seeds
PROFILE_NOISE = 0.002
MOST = 1e21  # FLOPs
OPTIMUM = CHINCHILLA["beta"] / (CHINCHILLA["alpha"] + CHINCHILLA["beta"])
OF_SEEDS = "saturating, seeds differ by {}"
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)


def losses(points: int, seed: int) -> Observations:
    """A published law at random sizes, with normal noise of the logarithm."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(np.log([5e7, 1e9]), np.log([1e10, 1e12]), (points, 2)))
    y = law("parametric", sizes) * np.exp(NOISE * rng.standard_normal(points))
    return Observations(sizes, LogLoss(y), np.arange(points))


def errors(points: int, seed: int, tau: float) -> Observations:
    """A saturating law at up to 20 places, with seeds that differ and test images that are drawn."""
    rng = np.random.default_rng(seed)
    x = np.resize(np.geomspace(1e3, 1e9, min(PLACES, points)), points)[:, None]
    y, trials = measured(law("saturating", x), tau, rng), np.full(points, float(TRIALS))
    return Observations(x, Binomial(y, trials, seed_spread(y, trials, x)), np.arange(points))


def branches(points: int, seed: int) -> Observations:
    """Losses of trunks, each with a point at every one of as many budgets."""
    rng = np.random.default_rng(seed)
    trunk = np.arange(points) // BRANCHES
    x = np.resize(np.geomspace(1e15, 1e18, BRANCHES), points)[:, None]
    noise = np.sqrt(SHARED) * rng.standard_normal(points)[trunk] + np.sqrt(1 - SHARED) * rng.standard_normal(points)
    return Observations(x, LogLoss(law("power", x) * np.exp(NOISE * noise)), trunk)


def measured(p: np.ndarray, tau: float, rng: np.random.Generator) -> np.ndarray:
    """Errors of runs whose typical one is p: log odds with a spread over seeds, and test images."""
    odds = np.log(p / (1 - p)) + tau * rng.standard_normal(len(p))
    return rng.binomial(TRIALS, 1 / (1 + np.exp(-odds))) / TRIALS


def mean_over_seeds(p: np.ndarray, tau: float) -> np.ndarray:
    """Of errors whose log odds are normal about those of p: what a law is of."""
    odds = np.log(p / (1 - p))[:, None] + tau * NODES
    return (1 / (1 + np.exp(-odds))) @ WEIGHTS / WEIGHTS.sum()


def law(form: str, inputs: np.ndarray) -> np.ndarray:
    known = {"parametric": CHINCHILLA, "saturating": SATURATING, "power": POWER}[form]
    return FORMS[form].value(theta_of(FORMS[form], known), np.log(inputs))[0]


@dataclass(frozen=True, slots=True)
class Design:
    form: str
    draw: Callable[[int, int], Observations]
    """Of a number of points and a seed."""
    truth: np.ndarray
    """At the places INSIDE."""
    one_more: Callable[[np.random.Generator], np.ndarray]
    """What new runs there measure."""


def of_losses(form: str, draw: Callable[[int, int], Observations]) -> Design:
    truth = law(form, INSIDE[form])
    return Design(form, draw, truth, lambda rng: truth * np.exp(NOISE * rng.standard_normal(len(truth))))


def designs() -> dict[str, Design]:
    typical = law("saturating", INSIDE["saturating"])
    found = {"parametric, noise 0.01 of log loss": of_losses("parametric", losses)}
    for tau in TAUS:
        found[OF_SEEDS.format(tau)] = Design(
            "saturating", partial(errors, tau=tau), mean_over_seeds(typical, tau), partial(measured, typical, tau)
        )
    return found


def published(v: np.ndarray, logs: np.ndarray, log_loss: np.ndarray) -> tuple[float, np.ndarray]:
    """Equation 3 and its gradient."""
    terms = np.stack([v[0] - v[3] * logs[:, 0], v[1] - v[4] * logs[:, 1], np.full(len(logs), v[2])])
    total = np.logaddexp.reduce(terms)
    r = total - log_loss
    size = np.abs(r)
    share = np.exp(terms - total) * np.clip(r, -DELTA, DELTA)
    gradient = [*share.sum(1), -(share[0] * logs[:, 0]).sum(), -(share[1] * logs[:, 1]).sum()]
    return float(np.where(size <= DELTA, r * r / 2, DELTA * (size - DELTA / 2)).sum()), np.array(gradient)


def starts(which: str) -> np.ndarray:
    grid = np.array(list(product(*GRID.values())))
    if which == "grid":
        return grid
    return np.random.default_rng(0).uniform(grid.min(0), grid.max(0), grid.shape)


def from_many_starts(points: Observations, which: str) -> tuple[np.ndarray, float]:
    """The objective that each start ends at, and the seconds for all of them."""
    logs, log_loss = np.log(points.inputs), np.log(points.y)
    began = time.perf_counter()
    found = [
        minimize(published, start, args=(logs, log_loss), jac=True, method="L-BFGS-B",
                 options={"ftol": 1e-14, "gtol": 1e-10, "maxiter": 1000}).fun
        for start in starts(which)
    ]  # fmt: skip
    return np.array(found), time.perf_counter() - began


def search_rows(rounds: int) -> list[list[str]]:
    rows = []
    for name, points in (("OLMo ladder, 16 runs", ladder_fit().observations), ("law with noise, 240", losses(240, 0))):
        ours, seconds = timed(lambda points=points: fit(FORMS["parametric"], points), rounds)
        for which in ("grid", "random"):
            theirs, long = from_many_starts(points, which)
            near = float((theirs <= ours.objective * (1 + 1e-6)).mean())
            rows.append(
                [name, f"{len(theirs):,} {which}", f"{ours.objective:.10g}", f"{theirs.min():.10g}",
                 f"{100 * near:.0f} %", f"{1e3 * seconds:.0f} ms", f"{long:.0f} s"]
            )  # fmt: skip
    return rows


def time_rows(rounds: int) -> list[list[str]]:
    rows = []
    for points in (250, 1_000, 10_000):
        found, fitted = timed(lambda points=points: fit(FORMS["parametric"], losses(points, 0)), rounds)
        _, drawn = timed(lambda found=found: sample(found, resamples=1000), 1)
        _, profiled = timed(lambda found=found: profiles(found), 1)
        _, whole = timed(lambda found=found: everything(found), 1)
        rows.append([f"{points:,}", f"{1e3 * fitted:.0f} ms", f"{drawn:.2f} s", f"{profiled:.2f} s", f"{whole:.1f} s"])
    return rows


def everything(found: Fit) -> object:
    """All that `vitscale fit` says of one curve."""
    points = found.observations
    curve = Curve("", Columns(("n", "d"), "loss"), points, ("",) * len(points), "loss")
    return assess(curve, "parametric", INSIDE["parametric"], resamples=1000)


def coverage_rows(draws: int, resamples: int, points: int) -> list[list[str]]:
    low, most = COVERED
    known, trunks = designs(), of_losses("power", branches)
    cases = [(name, design, points, most) for name, design in known.items()]
    cases += [(f"{name}, {runs} runs", known[name], runs, 1.0) for name in map(OF_SEEDS.format, TAUS) for runs in FEW]
    cases += [(f"power, {count} trunks of {BRANCHES} points", trunks, count * BRANCHES, 1.0) for count in TRUNKS]
    rows = []
    for name, design, runs, high in cases:
        shares = coverage(design, draws, resamples, runs)
        verdict = "" if all(low <= share <= high for share in shares) else f"outside {low:.0%} to {high:.0%}"
        rows.append([name, *(f"{100 * share:.1f} %" for share in shares), verdict])
    return rows


def profile_rows(draws: int, resamples: int) -> list[list[str]]:
    """How often 95 % intervals hold the exponent of the best size, and that size at ten times the largest compute."""
    rows = []
    for budgets, sizes, seeds in PROFILES:
        hits, widths, found = np.zeros(2), [], []
        for draw in range(draws):
            one = isoflop(at_equal_compute(budgets, sizes, seeds, draw), resamples=resamples, seed=draw)
            there = one.size_interval(10 * MOST)
            if one.interval is None or one.a is None or there is None:
                raise SystemExit("error: a law of the best size has no interval")
            hits += [one.interval.low <= OPTIMUM <= one.interval.high, there.low <= optimum(10 * MOST) <= there.high]
            widths.append(one.interval.width)
            found.append(one.a)
        shares = hits / draws
        verdict = "" if all(COVERED[0] <= share for share in shares) else f"below {COVERED[0]:.0%}"
        ratio = np.median(widths) / (2 * ndtri(0.975) * np.std(found))
        name = f"{budgets} budgets of {sizes} sizes" + (f", {seeds} seeds each" if seeds > 1 else "")
        rows.append([name, *(f"{100 * share:.1f} %" for share in shares), f"{ratio:.2f}", verdict])
    return rows


def at_equal_compute(budgets: int, sizes: int, seeds: int, seed: int) -> Observations:
    """The published law at sizes from a quarter to four times the best one of each budget."""
    compute = np.repeat(np.geomspace(MOST / 1e3, MOST, budgets), sizes * seeds)
    size = optimum(compute) * np.tile(np.repeat(np.geomspace(1 / 4, 4, sizes), seeds), budgets)
    loss = law("parametric", np.stack([size, compute / 6 / size], -1))
    noise = np.exp(PROFILE_NOISE * np.random.default_rng(seed).standard_normal(len(loss)))
    return Observations(np.stack([compute, size], -1), LogLoss(loss * noise), np.arange(len(loss)))


def optimum(compute: np.ndarray | float) -> np.ndarray:
    """The best size at 6 N D = compute, as the published law has it."""
    power = CHINCHILLA["alpha"] * CHINCHILLA["A"] / (CHINCHILLA["beta"] * CHINCHILLA["B"])
    return np.asarray(power ** (1 / (CHINCHILLA["alpha"] + CHINCHILLA["beta"])) * (np.asarray(compute) / 6) ** OPTIMUM)


def coverage(design: Design, draws: int, resamples: int, points: int) -> tuple[float, float]:
    """How often 95 % intervals hold the law, and one more run of it, at five places inside the range."""
    hits = np.zeros(2)
    for draw in range(draws):
        rng = np.random.default_rng(10**6 + draw)
        found = sample(fit(FORMS[design.form], design.draw(points, draw)), resamples=resamples, seed=draw)
        predictions = found.predictions(INSIDE[design.form])
        assert predictions is not None  # there are clusters enough
        for i, (value, intervals) in enumerate(zip((design.truth, design.one_more(rng)), predictions, strict=True)):
            hits[i] += np.mean([one.low <= v <= one.high for v, one in zip(value, intervals, strict=True)])
    return float(hits[0] / draws), float(hits[1] / draws)


def timed(work: Callable[[], object], rounds: int) -> tuple[object, float]:
    """What it returns, and the fewest seconds it took."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - began)
    return found, min(seconds)


def machine() -> str:
    return (
        f"{cpuinfo.get_cpu_info().get('brand_raw', 'CPU')}, {len(os.sched_getaffinity(0))} cores; "
        f"numpy {np.__version__}, scipy {scipy.__version__}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["search", "time", "coverage"], help="one of the tables")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="of each short timing; the fewest seconds count")
    parser.add_argument("--draws", type=at_least(10), default=200, help="of the coverage's designs")
    parser.add_argument("--resamples", type=at_least(100), default=200, help="of each of them")
    parser.add_argument("--points", type=at_least(20), default=100, help="in each of them")
    parser.add_argument("--markdown", action="store_true", help="the tables as Markdown")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    print(machine(), flush=True)
    if options.only in (None, "search"):
        columns = ("points", "starts", "ours", "best of theirs", "of them as low", "our time", "their time")
        print(table(columns, search_rows(options.rounds), markdown=options.markdown), flush=True)
    if options.only in (None, "time"):
        columns = ("points", "fit", "1,000 resamples", "profiles", "all of vitscale fit")
        print(table(columns, time_rows(options.rounds), markdown=options.markdown))
        print(f"memory at most: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB", flush=True)
    if options.only in (None, "coverage"):
        columns = ("law", "the law is inside", "one more run is inside", "")
        rows = coverage_rows(options.draws, options.resamples, options.points)
        print(table(columns, rows, markdown=options.markdown), flush=True)
        columns = ("isoFLOP profiles", "a is inside", "the best size is inside", "width / spread of a", "")
        more = profile_rows(options.draws, options.resamples)
        print(table(columns, more, markdown=options.markdown))
        if any(row[-1] for row in [*rows, *more]):
            raise SystemExit("error: an interval is not what it says")


if __name__ == "__main__":
    main()
