"""For tests: of your app, and of brokers, ours and yours.

`TestClient` runs your app's actors on the memory server, one message at a time; `DirectMessage` is a message for
calling an actor directly. The plugin for pytest (`repid.pytest_plugin`) gives the fixtures `repid_app` and
`repid_client`. See `docs/testing.md`.

`check_broker` tries a broker for everything the port promises (`repid.ports.broker`); `CHECKS` is the list of what it
tries, each with a sentence. With pytest and trio's virtual clock, one test for each:

    @pytest.mark.parametrize("check", CHECKS, ids=str)
    async def test_my_broker(check: Check, autojump_clock: MockClock) -> None:
        await check_broker(open_my_broker, only=[check])

* `client`: `TestClient`; `recording`: what it tells of each run. `direct`: `DirectMessage`.
* `suite`: `check_broker`; `checks`: what it tries; `judging`: what a check is; `expecting`: how it says what differed.
* `lab`: where a check works, with the steps that most of them are made of. `timing`: how time passes there.
  `cutting`: a link that can be cut. `interrupting`: cancelling a call at each of its awaits.
* `simulate`: whole fleets in virtual time.
"""

from .. import _name_as_public
from .checks import CHECKS
from .client import TestClient
from .cutting import Cut
from .direct import DirectMessage
from .judging import BrokerFailure, Check, Need
from .lab import Lab
from .recording import Fate, Run, RunFailed
from .suite import ConformanceReport, OpenBroker, check_broker
from .timing import Clock

__all__ = [
    "CHECKS",
    "BrokerFailure",
    "Check",
    "Clock",
    "ConformanceReport",
    "Cut",
    "DirectMessage",
    "Fate",
    "Lab",
    "Need",
    "OpenBroker",
    "Run",
    "RunFailed",
    "TestClient",
    "check_broker",
]

for _name in __all__:
    if getattr(globals()[_name], "__module__", "").startswith(__name__):  # some are types of Python
        _name_as_public(globals()[_name], __name__)
