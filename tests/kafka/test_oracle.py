"""The scenarios at a real broker with its own ACLs: what is written down of the clients is what they do.

So the scenarios can judge Sluice: the same steps through it, at a broker that allows everything, must come to the same.
"""

import pytest

from tests.kafka.conftest import Oracle
from tests.kafka.scenario import Case, cases


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.client}-{case.scenario.name}")
def test_the_brokers_own_acls_give_the_outcomes_of_the_scenario(played: Case, oracle: Oracle) -> None:
    assert played.short(oracle.outcomes[played.name]) == played.scenario.expected(played.client)
    after = {topic: oracle.after[played.full(topic)] for topic in played.scenario.after}
    assert after == {topic: sorted(values) for topic, values in played.scenario.after.items()}
