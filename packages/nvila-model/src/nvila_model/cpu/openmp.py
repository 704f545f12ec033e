"""How torch's threads wait for work, where other libraries' threads work on the same cores.

Threads of OpenMP that spin for milliseconds, as they do unless set otherwise, take cores from the compiled programs
that run next; threads that sleep at once make every small operation wait until they wake. A tenth of a millisecond is
longer than the way from one operation to the next, and too short to be missed elsewhere.
"""

from collections.abc import MutableMapping

SPINS = 10_000
"""Turns of libgomp's loop before a thread sleeps; it counts on 100,000 a millisecond."""
SETTINGS = {"GOMP_SPINCOUNT": str(SPINS), "OMP_WAIT_POLICY": "passive"}
"""Variables that OpenMP reads when torch comes: the first is GNU's own and counts there, the second is for others."""


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Add these settings, unless it has one of them already."""
    if not SETTINGS.keys() & environment.keys():
        environment.update(SETTINGS)
