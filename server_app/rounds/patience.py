"""Ends a run in which nothing is learned any more: workers that hang or clients that diverge do so in every round."""

from collections import Counter

from server_app.results import RoundRecord

_NAMED_REASONS = 3


class Patience:
    """Counts the rounds in a row in which no client brought a good training update.

    `give_up_after` is the number of them after which there is none left.
    """

    def __init__(self, give_up_after: int) -> None:
        self._give_up_after = give_up_after
        self._rounds = 0
        self._reasons: Counter[str] = Counter()

    def note(self, record: RoundRecord, learned: bool) -> None:
        """Count a round that is over; `learned` says whether any good training update came, or none was asked for."""
        if learned:
            self._rounds = 0
            self._reasons.clear()
        else:
            self._rounds += 1
            self._reasons.update(failure.reason for failure in record.failures)

    @property
    def is_over(self) -> bool:
        """Whether to give up."""
        return self._rounds >= self._give_up_after

    @property
    def words(self) -> str:
        """Why, as a sentence without its end: how many rounds, and the most frequent reasons."""
        reasons = [f"{reason} {count} times" for reason, count in self._reasons.most_common(_NAMED_REASONS)]
        why = f" ({', '.join(reasons)})" if reasons else ""
        return f"{self._rounds} rounds in a row (give-up-after) brought not one good training update{why}"
