"""repid: an actor-model job runtime on structured concurrency."""
