"""What remains when processes die: producers and workers are killed and stopped, and every id is accounted for.

`python -m tests.crash --help` runs it; `test_crash.py` is its short form.

* `harness`: starts the children, kills and stops them, waits until everything is done, asks for the account.
* `producer`, `worker`: the children, programs on the public API.
* `journal`: what each of them writes down before and after every step.
* `steps`: how a child kills or stops itself at a named step.
* `engines`: what differs between SQLite, PostgreSQL and Redis for the children; `stores`: the same for the harness.
* `failover`: Redis with a replica that takes over.
* `network`: what lies between the children and a server: it cuts and delays, stops and kills the server; `outages`: how
  the workers bore that.
* `checker`: from the journals and the broker's last state to figures and faults; pure.

A package, against the house's habit: the children are started with `python -m tests.crash.worker`.
"""
