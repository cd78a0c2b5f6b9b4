"""Real servers for tests, each engine in a module of its own.

Each server comes from PyPI where the platform has wheels, is started on a free loopback port in a temporary folder, and is
stopped by its pid. An environment variable names others.
"""
