"""The schedules of an app's server: looking at them, and changing them while workers run."""

from __future__ import annotations

from datetime import timedelta

from .application import Application
from .errors import ConfigurationError, did_you_mean
from .hosts import hosted
from .names import check_duration
from .ports import Broker, StoredSchedule
from .schedule import first_tick, make_schedule


class Schedules:
    """The stored schedules. Those of jobs are named after the job's id or else its name, those of actors
    "channel:name". Every method that is given a name raises `ConfigurationError` if there is none of that name.
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
        stored = {schedule.schedule.name: schedule for schedule in await self.list()}
        if name not in stored:
            raise ConfigurationError(f"there is no schedule named {name!r}{did_you_mean(name, stored)}")
        return stored[name]

    @hosted
    async def pause(self, name: str) -> None:
        """Hold its ticks until `resume`; those in between count as missed."""
        await self.get(name)
        await self._broker.pause_schedule(name, paused=True)

    @hosted
    async def resume(self, name: str) -> None:
        """Let it tick again."""
        await self.get(name)
        await self._broker.pause_schedule(name, paused=False)

    @hosted
    async def change(
        self, name: str, *, every: float | timedelta | None = None, cron: str | None = None, timezone: str = "UTC"
    ) -> None:
        """Give it another rule: an interval or a cron expression. Its next tick is reckoned from now."""
        stored = await self.get(name)
        schedule = make_schedule(
            f"schedule {name!r}",
            name,
            stored.schedule.envelope,
            every=None if every is None else check_duration("every", every, positive=True),
            cron=cron,
            timezone=timezone,
            overlap=stored.schedule.overlap,
            missed=stored.schedule.missed,
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
