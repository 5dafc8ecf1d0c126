"""The plots of the documentation: what they show is what was computed, and the same seed draws the same file."""

from pathlib import Path

import numpy as np
import pytest

from bench import gate_plots


def test_a_bad_candidate_is_rolled_back_and_a_good_one_proven() -> None:
    bad, good = gate_plots.course(3, 0, 0.10, 120), gate_plots.course(3, 0, 0.001, 240)
    assert bad.ended and bad.looks < 60
    assert bad.breach[bad.looks - 1] >= 0 > bad.breach[bad.looks - 2]
    assert not good.ended and good.proof.max() >= 0 > good.breach.max()


@pytest.mark.parametrize(("windows", "failed_in"), [({0, 2, 4}, None), ({0, 2, 4, 7}, 8), ({0, 1, 2, 3}, 4)])
def test_point_estimates_fail_at_the_fourth_window_above_the_limit(
    windows: set[int], failed_in: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One failure at each of 20 looks is 20 of 300, above 1%."""
    looks = 10 * gate_plots.PER_WINDOW
    failures = [1.0 if k // gate_plots.PER_WINDOW in windows else 0.0 for k in range(looks)]
    monkeypatch.setattr(gate_plots, "beats", lambda *_: iter([(np.array([0.0, 15.0, x, 15.0]), np.zeros(4)) for x in failures]))
    assert gate_plots.by_point_estimates(1, 0, 0.01, looks) == (None if failed_in is None else failed_in * gate_plots.PER_WINDOW)


def test_the_usual_interval_is_exact_for_one_look() -> None:
    # Nothing of n: the upper end is 1 - 0.025^(1/n). 10 of 100 is (0.0490, 0.1762) in the tables of Clopper and Pearson.
    low, high = gate_plots.clopper_pearson(np.array([0.0, 10.0]), np.array([50.0, 100.0]))
    assert (low[0], high[0]) == (0.0, pytest.approx(1 - 0.025 ** (1 / 50), abs=1e-6))
    assert (low[1], high[1]) == (pytest.approx(0.0490, abs=1e-4), pytest.approx(0.1762, abs=1e-4))


def test_the_same_seed_draws_the_same_file(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        with gate_plots.rc_context(gate_plots.STYLE):
            gate_plots.save(gate_plots.evidence_over_time(5, looks=60, lines=2), tmp_path / name)
    one = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert one == (tmp_path / "two.svg").read_text(encoding="utf-8")
    assert "<dc:date>" not in one and one.startswith("<?xml")
