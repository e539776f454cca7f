"""Budgets of the agent, and who has how much of them: places for records, connections, memory.

A quarter of a budget is promised: every subject has the same share of its own, whatever the others do, so a newcomer always
finds a place. The rest is lent to whoever asks, and nobody may hold more of it than three times what he leaves: a subject that
is alone gets most of it, and the fuller it is, the sooner those who have the most are refused. What a subject may have, its
connections share by the same rule.

All of this is counting: nothing here waits, or takes back what was given. One thread's only.
"""

# The part of a budget that is promised, in equal shares.
PROMISED = 4
# A borrower holds at most so many times what it leaves to the others.
LEAVES = 3
# A budget is short for a subject that has no more than this part of it left.
SHORT = 64


class Share:
    """What one subject holds of a budget."""

    __slots__ = ("held", "subject")

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.held = 0


class Claim:
    """What one connection holds of a budget, as a part of its subject's share."""

    __slots__ = ("held", "share")

    def __init__(self, share: Share) -> None:
        self.share = share
        self.held = 0


class Budget:
    """So many places or bytes, for as many subjects as `expect` was told of."""

    def __init__(self, limit: int, subjects: int = 1) -> None:
        self.limit = limit
        self.used = 0
        self._shares: dict[str, Share] = {}
        self.expect(subjects)

    def expect(self, subjects: int) -> None:
        """How many subjects there may be. What they hold already stays theirs."""
        subjects = max(subjects, 1)
        self.calm = self.limit // (2 * PROMISED)  # up to here nobody is near what it may have
        self.own = self.limit // (PROMISED * subjects)
        self._left = self.limit - self.own * subjects  # to be borrowed
        self._left -= sum(max(share.held - self.own, 0) for share in self._shares.values())

    def share(self, subject: str) -> Share:
        """A subject's share: subjects are named by policy, so there are few."""
        share = self._shares.get(subject)
        if share is None:
            share = self._shares[subject] = Share(subject)
        return share

    def claim(self, subject: str) -> Claim:
        return Claim(self.share(subject))

    def room(self, share: Share) -> int:
        """How much more a subject may take; what is left of its own at least."""
        mine = self.own - share.held
        room = self._left * LEAVES
        if mine < 0:
            room += mine
            mine = 0
        room //= LEAVES + 1
        return max(min(mine + room if room > 0 else mine, self.limit - self.used), 0)

    def fits(self, claim: Claim, n: int) -> bool:
        """Whether a connection may take ``n`` more."""
        rest = self.room(claim.share) - n
        return rest >= 0 and claim.held + n <= max(rest * LEAVES, n)

    def take(self, claim: Claim, n: int) -> bool:
        """Take ``n`` more for a connection, if it may."""
        if self.used + n > self.calm and not self.fits(claim, n):
            return False
        self.charge(claim, n)
        return True

    def charge(self, claim: Claim, n: int) -> None:
        """Count ``n`` more, which are there whether they may be or not; a negative number gives back."""
        claim.held += n
        self.used += n
        share = claim.share
        before = share.held
        share.held = after = before + n
        own = self.own
        if before > own or after > own:
            self._left -= (after if after > own else own) - (before if before > own else own)

    def greediest(self) -> Share | None:
        """Who holds the most; None when nobody holds anything."""
        share = max(self._shares.values(), key=lambda share: share.held, default=None)
        return share if share is not None and share.held else None

    def greedier(self, than: int) -> list[Share]:
        """All who hold more, the greediest first."""
        return sorted((share for share in self._shares.values() if share.held > than), key=lambda share: -share.held)

    def short(self) -> Share | None:
        """Who has all but what it may have, of those the one who holds the most."""
        share = self.greediest()
        return share if share is not None and self.room(share) <= self.limit // SHORT else None
