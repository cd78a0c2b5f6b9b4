"""The schedules of an app's server: looking at them, and changing them while workers run."""

from __future__ import annotations

from datetime import timedelta

from .application import Application
from .errors import ConfigurationError, did_you_mean
from .hosts import hosted
from .names import check_duration
from .ports import Broker, StoredSchedule
from .schedule import first_tick, make_schedule, resumed


class Schedules:
    """The stored schedules. That of a job with an id has the id as its name; those of other jobs and of actors are
    named "queue:name", where a colon in one of the two is written %3A. A change or a pause outlasts restarts: a change
    holds until the program declares something else than before, a pause until `resume`.

    Every method that is given a name raises `ConfigurationError` if there is none of that name.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    @hosted
    async def list(self) -> list[StoredSchedule]:
        """All of them, by name: their rules, when they tick next, how often they have ticked and skipped."""
        return await self._broker.schedules()

    @hosted
    async def get(self, name: str) -> StoredSchedule:
        """The one of that name."""
        found = await self._broker.schedules([name])
        if not found:
            known = [stored.schedule.name for stored in await self._broker.schedules()]
            raise ConfigurationError(f"there is no schedule named {name!r}{did_you_mean(name, known)}")
        return found[0]

    @hosted
    async def pause(self, name: str) -> None:
        """Hold its ticks until `resume`; those in between count as missed."""
        await self.get(name)
        await self._broker.pause_schedule(name, paused=True)

    @hosted
    async def resume(self, name: str) -> None:
        """Let it tick again. If ticks were due meanwhile, one catches up now; with `missed="none"` none does."""
        while True:  # once more where somebody else was quicker
            stored = await self.get(name)
            wanted = resumed(stored, await self._broker.now())
            if wanted is stored or await self._broker.replace_schedule(stored, wanted):
                return

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
        await self._broker.put_schedule(schedule, first_tick(schedule, await self._broker.now()))

    @hosted
    async def remove(self, name: str) -> None:
        """Forget it; what it has published stays. One that an actor declares comes back with the next worker."""
        await self.get(name)
        await self._broker.remove_schedule(name)

    @property
    def _broker(self) -> Broker:
        return self._app.server()
