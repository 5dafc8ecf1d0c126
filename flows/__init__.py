"""
The Prefect side: schedules, runs and what people see of them. The only package that imports prefect.

Prefect schedules, runs and shows; Postgres knows. Whatever is lost here (a run, an artifact, the whole Prefect database) loses no
rollout and no decision.
"""
