"""Who gets how much of a budget, whatever the others do."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from proxy.shares import Budget, Claim

LIMIT = 100_000
SUBJECTS = 5
GREEDY, HONEST = "greedy", "honest"

# Whose connection (subject, its number) asks for how much; a negative number is a part, in percent, that is given back.
ASKED = st.lists(
    st.tuples(st.integers(0, SUBJECTS - 1), st.integers(0, 3), st.one_of(st.integers(1, 20_000), st.integers(-100, -1)))
)


def all_that_fits(budget: Budget, claim: Callable[[], Claim], n: int = 10) -> int:
    """Take until no connection of ``claim`` gets anything more; what was taken."""
    taken = 0
    while budget.take(claim(), n):
        taken += n
    return taken


@given(ASKED)
def test_the_sum_never_exceeds_the_budget_and_a_subject_always_gets_its_own_share(asked: list[tuple[int, int, int]]) -> None:
    budget = Budget(LIMIT, SUBJECTS)
    claims = {(subject, number): budget.claim(str(subject)) for subject in range(SUBJECTS) for number in range(4)}
    for subject, number, n in asked:
        claim = claims[subject, number]
        held = sum(claims[subject, other].held for other in range(4))
        if n < 0:
            budget.charge(claim, -(claim.held * -n // 100))
        elif not budget.take(claim, n):
            over_connection = claim.held + n > 3 * (budget.own - held - n)
            assert held + n > budget.own or over_connection
        elif held + n > budget.own:
            assert claim.share.held - budget.own <= 3 * budget._left, "a borrower leaves something to the others"
        assert budget.used == sum(claim.held for claim in claims.values()) <= LIMIT
        assert budget._left == LIMIT - budget.own * SUBJECTS - sum(
            max(budget.share(str(one)).held - budget.own, 0) for one in range(SUBJECTS)
        )
    newcomer = Budget.claim(budget, "0") if not budget.share("0").held else None
    assert newcomer is None or budget.take(newcomer, budget.own // 2)


def test_whoever_is_alone_gets_most_of_it() -> None:
    budget = Budget(LIMIT, SUBJECTS)
    assert LIMIT * 0.5 < all_that_fits(budget, lambda: budget.claim(GREEDY)) < LIMIT * 0.8


def test_one_connection_leaves_something_to_the_others_of_its_subject() -> None:
    budget = Budget(LIMIT, SUBJECTS)
    one = budget.claim(GREEDY)
    first = all_that_fits(budget, lambda: one)
    assert first < LIMIT * 0.5
    assert all_that_fits(budget, lambda: budget.claim(GREEDY)) > first / 4


def test_the_fuller_it_is_the_sooner_the_greediest_is_refused_and_newcomers_are_not() -> None:
    budget = Budget(LIMIT, SUBJECTS)
    for number in range(SUBJECTS - 1):
        all_that_fits(budget, lambda number=number: budget.claim(str(number)))  # type: ignore[misc]
    assert budget.short() is budget.share("0")
    assert all_that_fits(budget, lambda: budget.claim(HONEST)) >= budget.own - 10


def test_what_is_given_back_goes_to_whoever_asks_next() -> None:
    budget = Budget(LIMIT, SUBJECTS)
    greedy = [budget.claim(GREEDY)]
    while budget.take(greedy[-1], 1000) or budget.take(greedy.append(budget.claim(GREEDY)) or greedy[-1], 1000):
        pass
    before = all_that_fits(budget, lambda: budget.claim(HONEST))
    for claim in greedy:
        budget.charge(claim, -claim.held)
    assert all_that_fits(budget, lambda: budget.claim(HONEST)) > before
    assert budget.short() is budget.share(HONEST)


def test_more_subjects_get_shares_of_their_own_once_there_is_room() -> None:
    budget = Budget(LIMIT, 1)
    greedy = budget.claim(GREEDY)
    budget.charge(greedy, LIMIT)
    budget.expect(100)
    assert not budget.take(budget.claim(HONEST), 10), "nothing is left at all"
    budget.charge(greedy, -budget.own)
    assert budget.take(budget.claim(HONEST), budget.own // 2)


def test_what_is_there_anyway_is_counted_beyond_the_limit() -> None:
    budget = Budget(LIMIT, 1)
    claim = budget.claim(GREEDY)
    budget.charge(claim, 2 * LIMIT)
    assert budget.used == 2 * LIMIT
    assert not budget.fits(budget.claim(HONEST), 1)
    budget.charge(claim, -2 * LIMIT)
    assert budget.take(claim, LIMIT // 4)
    assert budget.greediest() is claim.share
