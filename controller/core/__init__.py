"""
The rules of a rollout: values in, values out. No I/O, no clock, no logging, no randomness.

Read `decide` first: it says why traffic moves. `rollout` says what a rollout is, `gates` what a measurement is worth, and `converge`
what to do when the flag and the log disagree.
"""
