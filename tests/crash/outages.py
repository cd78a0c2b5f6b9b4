"""How the workers bore outages of their server: what they said of their link, and how soon they had it again. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median

from .checker import Account, Fault, Life
from .journal import Claimed, Line, Linked, Told
from .network import Outage

SURELY = 1.0
"""Seconds of an outage that everybody who runs notices."""

BACK = 30.0
"""Seconds after which the link is up again, however busy the machine is. What is promised is two: see the figures."""

FEW = 5
"""Warnings that a worker may log in one outage besides that about its link."""


def check_outages(lives: Sequence[Life], outages: Sequence[Outage]) -> Account:
    """The account of all outages: figures, and which worker said too little or too much."""
    account = Account()
    returns: list[float] = []
    claims: list[float] = []
    for outage in outages:
        witnesses = [life for life in lives if _lived_through(life, outage)]
        for life in witnesses:
            _check_worker(life, outage, account, returns)
        first = min((line.at for life in witnesses for line in _claims(life) if line.at > outage.back), default=None)
        if first is not None:
            claims.append(first - outage.back)
    account.figures.update(_figures(outages, returns, claims))
    return account


def _says_lost(line: Line) -> bool:
    """Whether a worker says that it has lost its link."""
    return isinstance(line, Told) and "lost its link" in line.text


def _lived_through(life: Life, outage: Outage) -> bool:
    """Whether it is a worker that had its link before, ran all the while, and until it had its link or should have.

    It looks at its link now and then. So one that has just said that it lost its link, which was cut, has none, although it
    has not yet written down that the link is down.
    """
    links = [line for line in life.lines if isinstance(line, Linked)]
    before = [line for line in life.lines if line.at < outage.down and (isinstance(line, Linked) or _says_lost(line))]
    is_linked = bool(before) and isinstance(before[-1], Linked) and before[-1].up
    last = life.lines[-1].at if life.lines else 0.0
    stopped = any(start < outage.back + BACK and end > outage.down for start, end in life.stops)
    saw_it_end = any(line.up and line.at > outage.back for line in links) or last > outage.back + BACK
    return is_linked and not stopped and saw_it_end and outage.back - outage.down > SURELY


def _check_worker(life: Life, outage: Outage, account: Account, returns: list[float]) -> None:
    links = [line for line in life.lines if isinstance(line, Linked)]
    if not any(not line.up and outage.down < line.at < outage.back for line in links):
        account.faults.append(Fault("link", life.name, "it did not say that its link was down"))
    back = next((line.at - outage.back for line in links if line.up and line.at > outage.back), None)
    if back is None:
        account.faults.append(Fault("link", life.name, f"its link was not up {BACK:g} s after the server's return"))
    else:
        returns.append(back)
    told = [line for line in life.lines if isinstance(line, Told) and outage.down < line.at < outage.back]
    if sum(map(_says_lost, told)) != 1 or len(told) > 1 + FEW:
        texts = [line.text for line in told[:FEW]]
        account.faults.append(Fault("link", life.name, f"it logged {len(told)} warnings in one outage: {texts}"))


def _claims(life: Life) -> Iterable[Claimed]:
    return (line for line in life.lines if isinstance(line, Claimed))


def _figures(outages: Sequence[Outage], returns: Sequence[float], claims: Sequence[float]) -> Counter[str]:
    figures = Counter(
        {
            "server stopped": sum(not outage.crashed for outage in outages),
            "server killed": sum(outage.crashed for outage in outages),
            "workers that lived through an outage": len(returns),
        }
    )
    if outages:
        figures["longest outage, s"] = round(max(outage.back - outage.down for outage in outages))
    if returns:
        figures["link after the return, ms: median"] = round(median(returns) * 1000)
        figures["link after the return, ms: slowest"] = round(max(returns) * 1000)
    if claims:
        figures["first claim after the return, ms: median"] = round(median(claims) * 1000)
        figures["first claim after the return, ms: slowest"] = round(max(claims) * 1000)
    return figures
