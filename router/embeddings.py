"""
``/v1/embeddings``: texts in, vectors out, never streamed.

Its one rule: vectors of two models cannot be compared, so no other model ever answers in place of the assigned one (`engine`).
"""

from collections.abc import Mapping
from typing import Any

import orjson

from router.caps import Endpoint
from router.dialect import Completed, Reader, code_of, malformed, object_of
from router.errors import ApiError
from router.outcome import Failed
from router.usage import counted


class Embeddings:
    endpoint: Endpoint = "embeddings"
    path = "/embeddings"

    def judge(self, body: bytes, model: str) -> Completed | Failed:
        answer = object_of(body)
        if answer is None:
            return malformed("an answer that is not a JSON object")
        if answer.get("error"):
            return malformed(f"200 with an error in it{code_of(answer['error'])}")
        rows = answer.get("data")
        if not isinstance(rows, list) or not rows:
            return malformed("an answer without data")
        if not all(isinstance(row, dict) and row.get("embedding") for row in rows):
            return malformed("a row without an embedding")
        if not answer.get("model"):
            body = orjson.dumps({**answer, "model": model})
        return Completed(body=body, tokens=counted(answer.get("usage"), "prompt_tokens"), text_bytes=0)

    def reader(self, model: str, asked: Mapping[str, Any]) -> Reader:
        raise AssertionError("embeddings are not streamed")

    def streaming(self, fields: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        raise AssertionError("embeddings are not streamed")

    def broken_off(self, error: ApiError) -> bytes:
        raise AssertionError("embeddings are not streamed")
