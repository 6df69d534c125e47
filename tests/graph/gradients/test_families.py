"""A few random nodes of every family against finite differences; `python -m benchmarks fuzz` runs thousands."""

from __future__ import annotations

from collections import Counter

import pytest

from gradfuse.benchmarks.fuzz import FAMILIES, search
from gradfuse.benchmarks.fuzz_families import Example

EXAMPLES = 12


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_difference_quotients(family: str) -> None:
    verdicts: Counter[str] = Counter()

    def seen(verdict: str, why: str, example: Example, dims: str) -> None:
        assert verdict in ("passes", "refused", "invalid"), f"{verdict}: {example.body} ({dims}): {why}"
        verdicts[verdict] += 1

    search(FAMILIES[family], EXAMPLES, seen)
    assert verdicts["passes"] > EXAMPLES // 2


def test_the_judge_notices_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradfuse.benchmarks import fuzz
    from gradfuse.graph.gradients import Gradient

    halved = Gradient(lambda g: (g.dy * 0.5,))
    monkeypatch.setattr(fuzz, "TABLE", {**fuzz.TABLE, ("", "Neg"): halved})
    example = Example("y = Neg (x)", {"x": fuzz.families.data((2, 3))})
    assert fuzz.judge(example, "static")[0] == "WRONG"
