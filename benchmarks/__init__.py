"""Speed and memory of repid and its peers, measured in one run on the same work.

* `workloads`: what is measured and what is to be reached, as data.
* `contenders/`: one script per library; each measurement is a fresh process of one of them.
* `environments`: the peers' virtual environments.
* `measuring`: the rounds, in which contenders take turns, and what comes out of them.
* `judging`: medians, ratios, targets.
* `report`, `plot`, `profile`: what a reader gets to see. `progress`: what the one who waits gets to see.
"""
