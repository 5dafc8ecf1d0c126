"""An application with the router in its own process: python docs/examples/in_process.py ROUTER_YAML."""

import sys

from router import APIError, Router

with Router(sys.argv[1]) as router:
    question = [{"role": "user", "content": "What is a penstock?"}]
    try:
        answer = router.chat.completions.create(model="chat", messages=question, user="ann")
        print(answer.penstock.model, answer.penstock.arm, answer.choices[0].finish_reason)
        with router.chat.completions.create(model="chat", messages=question, user="ann", stream=True) as stream:
            text = "".join(choice.delta.content or "" for event in stream for choice in event.choices)
        print(stream.penstock.model, len(text) > 0)
    except APIError as exc:
        print(f"nobody answered: {exc}", file=sys.stderr)
        sys.exit(1)
