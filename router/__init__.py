"""
The data plane: an OpenAI-compatible model router that obeys flags.

One request passes in this direction, and nothing calls back:

    app        HTTP: bytes to a ChatRequest, a Reply to bytes
    engine     a request through its attempts: fallbacks, shadow copies, metrics
    selection  pure: route, unit, flag -> the models to try
    drills     which requests are synthetic failures, and who may send them
    attempt    one upstream call: its outcome, tokens and times
    connections  to the providers, kept open between calls
    sse, usage, errors, metrics, flags, config, logs: what these stand on

Its one rule: no database, no Prefect, nothing of the controller. Whatever happens to the control plane, requests are answered.
"""
