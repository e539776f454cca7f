"""The scenarios as data: what is said twice in them is the same, and no exception hides anything."""

import pytest

from tests.kafka.scenario import NAMING, Scenario, scenarios

every_scenario = pytest.mark.parametrize("scenario", scenarios().values(), ids=scenarios())


@every_scenario
def test_the_acls_and_the_policy_speak_of_the_same_resources(scenario: Scenario) -> None:
    of_the_acls = {line.split()[2] for line in scenario.acls}
    of_the_policy = {value for rule in scenario.policy for key, value in rule.items() if key in NAMING}
    assert of_the_policy == of_the_acls


@every_scenario
def test_a_client_that_tells_something_else_reads_no_more_than_the_others(scenario: Scenario) -> None:
    for step in scenario.steps:
        for client, outcome in step.get("differs", {}).items():
            assert client in scenario.clients
            assert set(outcome["values"]) <= set(step["expect"]["values"])
