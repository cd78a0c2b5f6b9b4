"""repid within other projects' frameworks. Each needs an extra of its own, and nothing else in repid imports it."""
