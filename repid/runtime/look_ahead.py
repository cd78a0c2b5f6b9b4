"""How many messages a worker claims beyond those that a free executor can start at once.

Theory. A worker that claims only for free executors lets them stand idle for one round trip to the broker after each
run. So it claims ahead what will end during a few round trips: much where runs are short, nothing where they are long,
so that no message waits here that another worker could run. How many runs end during a round trip is measured, from
the moment there was room for more to the moment the room was filled.

* Two round trips of look-ahead would do if runs ended evenly. Runs that were started together end together, in waves,
  with pauses in between: therefore `TRIPS_AHEAD`, and a memory that halves every `HALF_LIFE` seconds rather than an
  average.
* A claim that brought less than it asked for, or took longer than `LONGEST_TRIP`, was waiting for messages. What ended
  meanwhile says nothing about the next round trip, so it only lets the memory fade.
* If runs become long, what was claimed ahead is given back (`Crew.give_back_held`), and the look-ahead is forgotten.

Pure: the time is passed in. Only the reader and the crew call it.
"""

from __future__ import annotations

from .limits import TRIPS_AHEAD

LONGEST_TRIP = 1.0
"""Seconds. What took longer was no round trip, but waiting for messages."""

HALF_LIFE = 1.0
"""Seconds after which half of a look-ahead is forgotten."""

TRIP_GROWTH = 1.1
"""The shortest round trip is remembered; it grows by this factor with each claim, because some of them only wait."""


class LookAhead:
    """Learns from each claim. `most`: the look-ahead is never larger."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._learned = 0.0
        self._finished = self._suspended = 0
        self.size = 0
        """How many messages to claim ahead now."""
        self.trip = LONGEST_TRIP
        """Seconds that a round trip to the broker takes, as far as is known."""
        self.runs_mostly_wait = False
        """Whether most of the last runs had to wait for something."""

    def learn(self, *, asked: float, now: float, is_full: bool, ended: int) -> None:
        """Learn from a claim that has just brought something.

        `asked`, `now`: the moments when the broker was asked and when it answered, in seconds. `is_full`: it gave all
        that was asked for. `ended`: how many runs ended between the moment there was room and this one.
        """
        self.trip = min(self.trip * TRIP_GROWTH, now - asked, LONGEST_TRIP)
        was_a_trip = is_full and now - asked < LONGEST_TRIP
        remembered = self.size * 0.5 ** ((now - self._learned) / HALF_LIFE) if self.size else 0
        self.size = min(max(TRIPS_AHEAD * ended if was_a_trip else 0, int(remembered)), self._most)
        self._learned = now

    def forget(self) -> None:
        """Claim nothing ahead until more is learned: runs have become long."""
        self.size = 0

    def note_runs(self, finished: int, suspended: int) -> None:
        """Compare how many runs have finished in total, and how many of all runs had to wait, with the last time."""
        self.runs_mostly_wait = 2 * (suspended - self._suspended) > finished - self._finished
        self._finished, self._suspended = finished, suspended
