"""The schedules of an app's server: looking at them, and changing them while workers run."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from .application import Application, needed_schedules_of
from .errors import ConfigurationError, did_you_mean
from .hosts import hosted
from .names import check_duration
from .ports import ScheduleStore, StoredSchedule
from .schedule import first_tick, make_schedule, paused, resumed


class Schedules:
    """The stored schedules. That of a job with an id has the id as its name; those of other jobs and of actors are
    named "queue:name", where a colon in one of the two is written %3A. A change or a pause outlasts restarts: a change
    holds until the program declares something else than before, a pause until `resume`.

    The schedule of an actor ends (`StoredSchedule.ended_at`) when no worker has declared it for ten minutes while one
    reads its queue: it does not tick any more. A worker that declares it brings it back, and so does `resume`.

    Every method that is given a name raises `ConfigurationError` if there is none of that name.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    def __repr__(self) -> str:
        return f"<Schedules of {self._app!r}>"

    @hosted
    async def list(self) -> list[StoredSchedule]:
        """All of them, by name: their rules, when they tick next, how often they have ticked and skipped."""
        return await self._store.schedules()

    @hosted
    async def get(self, name: str) -> StoredSchedule:
        """The one of that name."""
        found = await self._store.schedules([name])
        if not found:
            known = [stored.schedule.name for stored in await self._store.schedules()]
            whole = [each for each in known if each.rpartition(":")[2] == name]  # it was named without its queue
            raise ConfigurationError(
                f"there is no schedule named {name!r}{did_you_mean(whole[0] if whole else name, known)}"
            )
        return found[0]

    @hosted
    async def pause(self, name: str) -> None:
        """Hold its ticks until `resume`; those in between count as missed."""
        await self._alter(name, lambda stored, _: paused(stored))

    @hosted
    async def resume(self, name: str) -> None:
        """Let it tick again, after a pause or its end. If ticks were due meanwhile, one catches up now; with
        `missed="none"` none does.
        """
        await self._alter(name, resumed)

    @hosted
    async def change(
        self,
        name: str,
        *,
        every: float | timedelta | None = None,
        cron: str | None = None,
        timezone: str | None = None,
    ) -> None:
        """Give it another rule: an interval, a cron expression, or another time zone for the one it has.

        A new cron expression keeps the time zone that the schedule has, unless `timezone` is given. The next tick is
        reckoned from now. The change outlasts restarts, until the program declares something else than before.
        """
        stored = await self.get(name)
        rule = stored.schedule
        if timezone is not None and every is None and cron is None:
            cron = rule.cron
        schedule = make_schedule(
            f"schedule {name!r}",
            name,
            rule.envelope,
            every=None if every is None else check_duration("every", every, positive=True),
            cron=cron,
            timezone=rule.timezone if timezone is None and cron is not None else timezone,
            overlap=rule.overlap,
            missed=rule.missed,
        )
        await self._store.put_schedule(schedule, first_tick(schedule, await self._store.now()))

    @hosted
    async def remove(self, name: str) -> None:
        """Forget it; what it has published stays. One that an actor declares comes back with the next worker."""
        await self.get(name)
        await self._store.remove_schedule(name)

    async def _alter(self, name: str, alter: Callable[[StoredSchedule, float], StoredSchedule]) -> None:
        while True:  # once more where somebody else was quicker
            stored = await self.get(name)
            wanted = alter(stored, await self._store.now())
            if wanted is stored or await self._store.replace_schedule(stored, wanted):
                return

    @property
    def _store(self) -> ScheduleStore:
        return needed_schedules_of(self._app, self._app.server())
