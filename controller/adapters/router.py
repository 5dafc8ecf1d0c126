"""
What a router knows: the models it could send a candidate's traffic to.

Its one rule: a router that cannot be asked is an error that names its address, never an empty list.
"""

import httpx

from controller.ports import Unavailable

TIMEOUT_S = 5.0


def known_models(url: str) -> frozenset[str]:
    """
    Names of the models behind a router.

    Args:
        url: The router's base address, ``http://127.0.0.1:8421``.

    Raises:
        Unavailable: it does not answer, or not as an OpenAI-compatible router does.
    """
    address = f"{url.rstrip('/')}/v1/models"
    try:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
            answer = client.get(address)
        names = [m["id"] for m in answer.raise_for_status().json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise Unavailable(f"the router at {address} cannot be asked for its models: {str(exc) or type(exc).__name__}") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise Unavailable(f"the router at {address} answered something else than a list of models") from exc
    return frozenset(n for n in names if isinstance(n, str))
