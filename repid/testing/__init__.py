"""For tests: of brokers, ours and yours.

`check_broker` tries a broker for everything the port promises (`repid.ports.broker`); `CHECKS` is the list of what it
tries, each with a sentence. With pytest and trio's virtual clock, one test for each:

    @pytest.mark.parametrize("check", CHECKS, ids=str)
    async def test_my_broker(check: Check, autojump_clock: MockClock) -> None:
        await check_broker(open_my_broker, only=[check])
"""

from .checks import CHECKS
from .cutting import Cut
from .judging import BrokerFailure, Check, Need
from .lab import Lab
from .suite import ConformanceReport, OpenBroker, check_broker
from .timing import Clock

__all__ = [
    "CHECKS",
    "BrokerFailure",
    "Check",
    "Clock",
    "ConformanceReport",
    "Cut",
    "Lab",
    "Need",
    "OpenBroker",
    "check_broker",
]
