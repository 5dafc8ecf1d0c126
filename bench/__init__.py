"""
The benchmark harness: stand-ins for the world outside Penstock, which users keep for game days.

`python -m bench.provider` is an OpenAI-compatible upstream with scripted behaviour, `python -m bench.traffic` sends it requests at the
times of a trace, `python -m bench.slack` is Slack as far as Penstock can see. Its one rule: nothing here imports the controller or the
router, so that what is judged never judges itself.
"""
