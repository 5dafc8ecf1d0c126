"""
The web console: what `penstock list`, `get`, `why` and the verbs are on the command line, as pages.

`app.create_web` makes it. Its one rule: a page reads the same log and calls the same commands as every other door; it works without
JavaScript, and with it the numbers on it are of now.
"""
