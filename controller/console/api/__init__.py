"""
The HTTP API below `/api/v1`: the verbs of the command line for programs, with OpenAPI; and Alertmanager's door.

`app.create_api` makes it. Its one rule: a request changes nothing unless a token says whose it is.
"""
