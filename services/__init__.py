"""
Runs the real third-party servers (PostgreSQL, Prometheus) on loopback, for `penstock up`, the demo and the tests.

Its one rule: what a process starts here ends with it, even after `kill -9`; it imports nothing else of the project.
"""
