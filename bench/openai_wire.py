"""
The OpenAI wire format as the simulator speaks it: chat completions, their streams, embeddings, models, errors.

Its one rule: bytes in, bytes out; nothing here waits or draws. The shapes are those of the API reference
(platform.openai.com/docs/api-reference/chat), and the tests read them with the openai package.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

PROMPT_TOKENS_HEADER = b"x-sim-prompt-tokens"
PROMPT_TOKENS_METADATA = "sim_prompt_tokens"
COMPLETION_TOKENS_METADATA = "sim_completion_tokens"

_BYTES_PER_TOKEN = 4  # OpenAI's own rule of thumb for English text
_CHUNKS_MAX = 24  # chunks of a stream: enough to look like one, few enough to serve hundreds of streams
_WORDS = ("the water finds its way through the gate by measure and the keeper writes down what passed " * 40).split()


_ARGUMENTS = '{"query":"how much water passed the gate"}'
"""Of a tool whose parameters have no schema."""

_DEPTH_MAX = 20


class RequestRefused(ValueError):
    """A request that OpenAI would refuse with 400; the message is what its error object says."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """
    What the simulator reads of a request.

    Args:
        model: Wanted model.
        stream: Server-sent events.
        include_usage: A last chunk with the usage.
        max_tokens: `max_completion_tokens` or `max_tokens`.
        completion_tokens: Exact length wished for by metadata, None otherwise.
        prompt_tokens: Told by header or metadata, else estimated from the size of the messages.
        tool: Name of the tool to call if the answer is a tool call; None if the request offers none.
        forced: The answer has to be that call.
        arguments: Of it, as JSON that its parameters' schema allows.
        answer: JSON of the schema that the request asks the answer to have; None where it asks for none.
    """

    model: str
    stream: bool
    include_usage: bool
    max_tokens: int | None
    completion_tokens: int | None
    prompt_tokens: int
    tool: str | None
    forced: bool
    arguments: str
    answer: str | None


def read_response_request(body: bytes, *, prompt_tokens_header: str | None) -> ChatRequest:
    """
    Read the body of `POST /v1/responses` as the same question in the other endpoint's words: items for messages.

    Raises:
        RequestRefused: not JSON, or a required field is missing or of the wrong kind.
    """
    data = _object(body)
    given = data.pop("input", None)
    if isinstance(given, str) and given:
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise RequestRefused("Invalid 'input': expected a string or a non-empty array.", param="input")
    tools = data.get("tools")
    if isinstance(tools, list):
        data["tools"] = [{"function": tool} for tool in tools]
    choice, text = data.get("tool_choice"), data.pop("text", None)
    if isinstance(choice, Mapping):
        data["tool_choice"] = {"function": choice}
    if isinstance(text, Mapping) and isinstance(text.get("format"), Mapping):
        data["response_format"] = {**text["format"], "json_schema": text["format"]}
    data |= {"messages": given, "max_tokens": data.pop("max_output_tokens", None), "stream_options": None}
    return read_chat_request(orjson.dumps(data), prompt_tokens_header=prompt_tokens_header)


def read_chat_request(body: bytes, *, prompt_tokens_header: str | None) -> ChatRequest:
    """
    Read the body of `POST /v1/chat/completions`. Fields that the simulator does not know, `n` among them, are ignored.

    Raises:
        RequestRefused: not JSON, or a required field is missing or of the wrong kind.
    """
    data = _object(body)
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestRefused("Invalid 'messages': expected a non-empty array.", param="messages")
    options = data.get("stream_options")
    metadata = data.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    limit = data.get("max_completion_tokens", data.get("max_tokens"))
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise RequestRefused(f"Invalid 'max_tokens': expected an integer of at least 1, got {limit!r}.", param="max_tokens")
    told = _count(prompt_tokens_header, "x-sim-prompt-tokens")
    if told is None:
        told = _count(metadata.get(PROMPT_TOKENS_METADATA), PROMPT_TOKENS_METADATA)
    return ChatRequest(
        model=_model(data),
        stream=data.get("stream") is True,
        include_usage=isinstance(options, Mapping) and options.get("include_usage") is True,
        max_tokens=limit,
        completion_tokens=_count(metadata.get(COMPLETION_TOKENS_METADATA), COMPLETION_TOKENS_METADATA),
        prompt_tokens=told if told is not None else sum(_tokens_of(m) for m in messages),
        tool=_tool(data),
        forced=isinstance(data.get("tool_choice"), Mapping) or data.get("tool_choice") == "required",
        arguments=_arguments(data),
        answer=_answer(data.get("response_format")),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """An answer that is ready to be written down."""

    id: str
    created: int
    model: str
    prompt_tokens: int
    completion_tokens: int
    length_limited: bool
    tool: str | None
    arguments: str = _ARGUMENTS
    answer: str | None = None

    @property
    def finish_reason(self) -> str:
        if self.tool is not None:
            return "tool_calls"
        return "length" if self.length_limited else "stop"

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }

    def to_body(self) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": self._whole(), "refusal": None}
        if self.tool is not None:
            message |= {"content": None, "tool_calls": [self._tool_call(self.arguments)]}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason}
        return orjson.dumps(
            {
                "id": self.id,
                "object": "chat.completion",
                "created": self.created,
                "model": self.model,
                "choices": [choice],
                "usage": self.usage(),
                "system_fingerprint": "fp_simulated",
            }
        )

    def chunks(self) -> Iterator[tuple[float, bytes]]:
        """The events of the stream up to the last content: (share of the generation done before it, event)."""
        parts: list[dict[str, Any]]
        if self.tool is not None:
            half = len(self.arguments) // 2
            rest = {"tool_calls": [{"index": 0, "function": {"arguments": self.arguments[half:]}}]}
            parts = [
                {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **self._tool_call(self.arguments[:half])}]},
                rest,
            ]
        else:
            parts = [{"content": text} for text in self._pieces()]
            parts[0] = {"role": "assistant", "refusal": None, **parts[0]}
        # Only the delta differs between events: the rest is written once.
        before, after = self._event([{"index": 0, "delta": 0, "logprobs": None, "finish_reason": None}]).split(b'"delta":0')
        before += b'"delta":'
        for i, delta in enumerate(parts):
            yield i / max(1, len(parts) - 1), before + orjson.dumps(delta) + after

    def last_chunks(self, *, include_usage: bool) -> bytes:
        """What ends a stream: the finish reason, the usage if asked for, and `[DONE]`."""
        end = self._event([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": self.finish_reason}])
        usage = self._event([], usage=self.usage()) if include_usage else b""
        return end + usage + b"data: [DONE]\n\n"

    def to_response(self, status: str = "completed") -> dict[str, Any]:
        """The same answer as a response object (platform.openai.com/docs/api-reference/responses/object)."""
        ended = status != "in_progress"
        whole: dict[str, Any] = {
            "id": f"resp_{self.id[-24:]}",
            "object": "response",
            "created_at": self.created,
            "status": status,
        }
        whole |= {"model": self.model, "error": None, "incomplete_details": None, "instructions": None, "metadata": {}}
        whole |= {"parallel_tool_calls": True, "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0}
        if ended and self.length_limited:
            whole |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        usage = {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
        return {
            **whole,
            "output": [self._item(self._whole())] if ended else [],
            "usage": usage if ended else None,
        }

    def response_events(self) -> Iterator[tuple[float, bytes]]:
        """The events of the response's stream up to its last content: (share of the generation done before it, event)."""
        yield 0.0, _typed("response.created", 0, response=self.to_response("in_progress"))
        if self.tool is not None:
            kind, parts = (
                "response.function_call_arguments.delta",
                [self.arguments[: len(self.arguments) // 2], self.arguments[len(self.arguments) // 2 :]],
            )
        else:
            kind, parts = "response.output_text.delta", self._pieces()
        place = {"item_id": self._item("")["id"], "output_index": 0, "content_index": 0}
        yield 0.0, _typed("response.output_item.added", 1, output_index=0, item=self._item(""))
        if self.tool is None:
            yield 0.0, _typed("response.content_part.added", 2, **place, part=_part(""))
        for i, delta in enumerate(parts):
            yield i / max(1, len(parts) - 1), _typed(kind, 3 + i, **place, delta=delta, logprobs=[])

    def last_response_events(self) -> bytes:
        """What ends the stream: the whole item, and the response with its usage."""
        whole = self.to_response()
        item = _typed("response.output_item.done", 98, output_index=0, item=whole["output"][0])
        return item + _typed(f"response.{whole['status']}", 99, response=whole)

    def _whole(self) -> str:
        return _text(0, self.completion_tokens) if self.answer is None else self.answer

    def _pieces(self) -> list[str]:
        """The text as a stream brings it; at least one."""
        if self.answer is not None:
            size = max(1, -(-len(self.answer) // _CHUNKS_MAX))
            return [self.answer[i : i + size] for i in range(0, len(self.answer), size)] or [""]
        count = max(1, min(_CHUNKS_MAX, self.completion_tokens))
        edges = [self.completion_tokens * i // count for i in range(count + 1)]
        return [_text(edges[i], edges[i + 1]) for i in range(count)]

    def _item(self, text: str) -> dict[str, Any]:
        if self.tool is not None:
            call = {"id": f"fc_{self.id[-24:]}", "type": "function_call", "call_id": f"call_{self.id[-24:]}"}
            return {**call, "name": self.tool, "arguments": self.arguments if text else "", "status": "completed"}
        message = {"id": f"msg_{self.id[-24:]}", "type": "message", "role": "assistant", "status": "completed"}
        return {**message, "content": [_part(text)] if text else []}

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        data = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}
        return b"data: " + orjson.dumps({**data, "system_fingerprint": "fp_simulated", "choices": choices, **more}) + b"\n\n"

    def _tool_call(self, arguments: str) -> dict[str, Any]:
        return {"id": f"call_{self.id[-24:]}", "type": "function", "function": {"name": self.tool, "arguments": arguments}}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _typed(kind: str, number: int, **fields: Any) -> bytes:
    data = orjson.dumps({"type": kind, "sequence_number": number, **fields})
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def embeddings_body(body: bytes) -> tuple[str, bytes]:
    """The model and the answer to `POST /v1/embeddings`; vectors are short and follow from the text. Raises RequestRefused."""
    data = _object(body)
    model, given = _model(data), data.get("input")
    inputs = given if isinstance(given, list) else [given]
    if not inputs or any(not isinstance(i, str | list | int) for i in inputs):
        raise RequestRefused("Invalid 'input': expected a string or an array.", param="input")
    if isinstance(given, list) and all(isinstance(i, int) for i in given):
        inputs = [given]  # one text as token numbers
    dimensions = data.get("dimensions", 16)
    if isinstance(dimensions, bool) or not isinstance(dimensions, int) or not 1 <= dimensions <= 4096:
        raise RequestRefused(f"Invalid 'dimensions': expected an integer within 1..4096, got {dimensions!r}.", param="dimensions")
    rows = [{"object": "embedding", "index": i, "embedding": _vector(text, dimensions)} for i, text in enumerate(inputs)]
    tokens = sum(len(i) if isinstance(i, list) else 1 + len(str(i).encode()) // _BYTES_PER_TOKEN for i in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return model, orjson.dumps({"object": "list", "data": rows, "model": model, "usage": usage})


def models_body(names: list[str]) -> bytes:
    rows = [{"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "simulator"} for name in names]
    return orjson.dumps({"object": "list", "data": rows})


def error_body(message: str, *, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _object(body: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise RequestRefused(f"We could not parse the JSON body of your request: {exc}") from exc
    if not isinstance(data, dict):
        raise RequestRefused("The body of the request must be a JSON object.")
    return data


def _model(data: Mapping[str, Any]) -> str:
    model = data.get("model")
    if not isinstance(model, str) or not model:
        raise RequestRefused("you must provide a model parameter", param="model")
    return model


def _tool(data: Mapping[str, Any]) -> str | None:
    tools, choice = data.get("tools"), data.get("tool_choice")
    if not isinstance(tools, list) or not tools or choice == "none":
        return None
    if isinstance(choice, Mapping):
        return str((choice.get("function") or {}).get("name"))
    try:
        return str(tools[0]["function"]["name"])
    except (KeyError, TypeError) as exc:
        raise RequestRefused("Invalid 'tools[0].function.name': missing.", param="tools") from exc


def _arguments(data: Mapping[str, Any]) -> str:
    name = _tool(data)
    for tool in data.get("tools") or [] if name is not None else []:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if isinstance(function, Mapping) and function.get("name") == name and isinstance(function.get("parameters"), Mapping):
            return orjson.dumps(_example(function["parameters"], function["parameters"])).decode()
    return _ARGUMENTS


def _answer(wanted: Any) -> str | None:
    if not isinstance(wanted, Mapping) or wanted.get("type") not in ("json_schema", "json_object"):
        return None
    schema = (wanted.get("json_schema") or {}).get("schema") if wanted["type"] == "json_schema" else {"type": "object"}
    if not isinstance(schema, Mapping):
        raise RequestRefused("Missing required parameter: 'response_format.json_schema.schema'.", param="response_format")
    return orjson.dumps(_example(schema, schema)).decode()


def _example(schema: Any, whole: Mapping[str, Any], depth: int = 0) -> Any:
    """The plainest value that a schema of OpenAI's strict kind allows: every property, the first of what may be chosen."""
    if not isinstance(schema, Mapping) or depth > _DEPTH_MAX:
        return None
    if isinstance(ref := schema.get("$ref"), str):
        found: Any = whole
        for part in ref.removeprefix("#").strip("/").split("/"):
            found = found.get(part) if isinstance(found, Mapping) and part else found
        return _example(found, whole, depth + 1)
    for key in ("enum", "anyOf", "oneOf"):
        if isinstance(choices := schema.get(key), list) and choices:
            return choices[0] if key == "enum" else _example(choices[0], whole, depth + 1)
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    match kind[0] if isinstance(kind, list) and kind else kind:
        case "object":
            properties = schema.get("properties")
            return {k: _example(v, whole, depth + 1) for k, v in properties.items()} if isinstance(properties, Mapping) else {}
        case "array":
            return [_example(schema.get("items"), whole, depth + 1)] * max(1, int(schema.get("minItems") or 1))
        case "string":
            return "water"
        case "integer" | "number":
            least = schema.get("minimum")
            return least if isinstance(least, int | float) else 1
        case "boolean":
            return True
        case _:
            return None


def _count(given: Any, name: str) -> int | None:
    if given is None:
        return None
    try:
        count = int(given)
    except (TypeError, ValueError):
        count = -1
    if count < 0:
        raise RequestRefused(f"Invalid '{name}': expected a number of tokens, got {given!r}.", param=name)
    return count


def _tokens_of(message: Any) -> int:
    """About what a message costs: four bytes a token, and four tokens around each message."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return 4 + len(str(content or "").encode()) // _BYTES_PER_TOKEN


def _text(start: int, end: int) -> str:
    return "".join(_WORDS[i % len(_WORDS)] + " " for i in range(start, end))


def _vector(text: Any, dimensions: int) -> list[float]:
    seed = sum((i + 1) * b for i, b in enumerate(str(text).encode()[:256]))
    return [((seed * (i + 7919)) % 2003) / 1001.5 - 1.0 for i in range(dimensions)]
