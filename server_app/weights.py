"""How much each client counts in a mean over clients: by its samples, but no more than a share.

How many samples a client has is its own word, so on real sites one that claims a million must not take the mean over.
"""

from collections.abc import Mapping
from fractions import Fraction


def capped_weights(counts: Mapping[str, int], cap: float) -> dict[str, int | float]:
    """The weights of clients with so many samples, none of which has a larger share of their sum than `cap`.

    Weights below the cap are the counts themselves, so the proportions among these clients stay, and where nobody is
    above it nothing changes; those above share one weight, that whose share is the cap (water-filling). Of n clients
    that count at all the cap is at least 1 / n, which an equal weight for each of them satisfies.

    Parameters
    ----------
    counts: samples by client, at least 0.
    cap: the largest share, above 0, at most 1.
    """
    # Fractions, since a level that is rounded down by a bit would lie below a count that is to reach it.
    share = max(Fraction(cap), Fraction(1, max(1, sum(count > 0 for count in counts.values()))))
    rest = sum(counts.values())  # of those below the cap
    level = share * rest
    for number, count in enumerate(sorted(counts.values(), reverse=True), start=1):
        if count <= level:
            break
        # With `number` clients at the level: level = share (number level + rest).
        rest -= count
        level = share * rest / (1 - number * share)
    return {key: count if count <= level else float(level) for key, count in counts.items()}
