"""What the front door is made of; drivers of remote engines use some of it too.

* `coalescer`: many concurrent calls become one.
* `hub`: waiting for news of the engine, with one `news` call for all who wait. `notes`: news on its way there.
* `watching`: how jobs stand, with one `snapshots` call for all who watch.
* `lines`: waiting for room in full queues, first come, first served. `unserved`: telling the log why those who wait for
  jobs or for room wait in vain. `dropping`: telling it what full queues have dropped.
* `link`: the connection to the engine: opening it, noticing that it broke, opening it again.
* `calls`: one call to a driver: checked, shielded, bounded and timed. `extender`: leases while the event loop is
  blocked.
* `keys`: the keys of browsed messages. `packing`: what SQL engines keep packed.
* `ticking`: a tick whose schedule is kept by another server than the one that gets its message.
"""
