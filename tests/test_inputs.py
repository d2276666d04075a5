"""Whatever is handed to the project, it is used or refused with one clear error (`inputs.py` says what is tried)."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from inputs import KINDS, REFUSED, USED

EXAMPLES = 150


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_inputs_are_used_or_refused(name):
    kind, found = KINDS[name], Counter()

    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(kind.inputs)
    def attempt(one):
        found[kind.check(one)] += 1

    attempt()
    assert found[USED], "nothing was good"
    assert found[REFUSED], "nothing was bad"
