"""The provider simulator over HTTP, as the openai package sees it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Literal

import aiohttp
import openai
import pytest
from pydantic import BaseModel

from bench.behaviour import Errors, Latency, ModelBehaviour
from bench.provider import Provider, main, running_provider

QUICK = ModelBehaviour(ttft=Latency(median_s=0.001, sigma=0), tokens_per_s=100_000)
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "how much water?"}]}
TOOLS: Any = [{"type": "function", "function": {"name": "measure", "parameters": {"type": "object", "properties": {}}}}]


def failing(**errors: Any) -> ModelBehaviour:
    return ModelBehaviour(ttft=QUICK.ttft, tokens_per_s=QUICK.tokens_per_s, errors=Errors(**errors))


@pytest.fixture
async def provider() -> Provider:
    return Provider(
        {
            "good": QUICK,
            "cut": failing(cut=1),
            "reset": failing(reset=1),
            "garbage": failing(garbage=1),
            "limited": failing(rate_limited=1, retry_after_s=7),
            "broken": failing(server_error=1),
            "hanging": failing(timeout=1, hang_s=0.05),
            "slow": ModelBehaviour(ttft=Latency(median_s=60, sigma=0)),
        }
    )


@pytest.fixture
async def url(provider: Provider) -> AsyncIterator[str]:
    async with running_provider(provider) as base:
        yield base


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as made:
        yield made


async def test_a_completion_has_the_length_and_usage_that_were_asked_for(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="good", max_tokens=5, n=3, messages=ASK["messages"], metadata={"sim_prompt_tokens": "374"}
    )
    assert len(answer.choices) == 1
    assert answer.choices[0].finish_reason == "length"
    assert len((answer.choices[0].message.content or "").split()) == 5
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (374, 5, 379)


async def test_metadata_may_set_the_length_and_the_header_the_prompt(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="good",
        messages=ASK["messages"],
        metadata={"sim_completion_tokens": "9"},
        extra_headers={"x-sim-prompt-tokens": "12"},
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (12, 9)


async def test_prompt_tokens_are_estimated_from_the_content(client: openai.AsyncOpenAI) -> None:
    messages: Any = [{"role": "user", "content": "a" * 400}, {"role": "user", "content": [{"type": "text", "text": "b" * 40}]}]
    answer = await client.chat.completions.create(model="good", messages=messages, max_tokens=1)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 4 + 100 + 4 + 10


async def test_a_stream_carries_the_same_text_then_a_reason_then_the_usage(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="good", max_tokens=30, messages=ASK["messages"])
    stream = await client.chat.completions.create(
        model="good", max_tokens=30, stream=True, stream_options={"include_usage": True}, messages=ASK["messages"]
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-2:] == [None, "length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 30


async def test_tools_are_called_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="good", tools=TOOLS, messages=ASK["messages"])
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "measure"
    stream = await client.chat.completions.create(model="good", tools=TOOLS, stream=True, messages=ASK["messages"])
    parts = [t async for c in stream if c.choices for t in c.choices[0].delta.tool_calls or []]
    arguments = "".join(p.function.arguments or "" for p in parts if p.function)
    assert json.loads(arguments) == json.loads(call.function.arguments)
    refused = await client.chat.completions.create(model="good", tools=TOOLS, tool_choice="none", messages=ASK["messages"])
    assert refused.choices[0].message.tool_calls is None


async def test_models_and_embeddings_are_served(client: openai.AsyncOpenAI) -> None:
    assert "good" in [m.id async for m in client.models.list()]
    answer = await client.embeddings.create(model="good", input=["a", "b"], dimensions=8, encoding_format="float")
    assert [len(row.embedding) for row in answer.data] == [8, 8]
    assert answer.data[0].embedding != answer.data[1].embedding


@pytest.mark.parametrize("stream", [False, True])
async def test_every_scripted_failure_is_what_a_client_would_meet(client: openai.AsyncOpenAI, stream: bool) -> None:
    async def ask(model: str) -> Any:
        answer: Any = await client.chat.completions.create(model=model, stream=stream, max_tokens=40, messages=ASK["messages"])
        return [chunk async for chunk in answer] if stream else answer

    with pytest.raises(openai.RateLimitError) as limited:
        await ask("limited")
    assert limited.value.response.headers["retry-after"] == "7"
    with pytest.raises(openai.InternalServerError):
        await ask("broken")
    for model in ("cut", "reset", "hanging"):
        with pytest.raises(openai.APIConnectionError):
            await ask(model)


@pytest.mark.parametrize("stream", [False, True])
async def test_garbage_is_a_200_that_is_no_answer(url: str, stream: bool) -> None:
    body = {**ASK, "model": "garbage", "stream": stream}
    async with aiohttp.ClientSession() as http, http.post(f"{url}/v1/chat/completions", json=body) as answer:
        assert (answer.status, (await answer.text())[:6]) == (200, "<html>")


async def test_a_cut_stream_has_content_and_neither_reason_nor_done(url: str) -> None:
    seen = b""
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/chat/completions", json={**ASK, "model": "cut", "stream": True, "max_tokens": 40}) as answer,
    ):
        with pytest.raises(aiohttp.ClientPayloadError):
            async for line in answer.content:
                seen += line
    assert b'"content":"' in seen
    assert b"[DONE]" not in seen
    assert b'"finish_reason":"' not in seen


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "could not parse the JSON body"),
        (b"[]", "must be a JSON object"),
        (b'{"messages": [{}]}', "must provide a model parameter"),
        (b'{"model": "good"}', "Invalid 'messages'"),
        (b'{"model": "good", "messages": [{}], "max_tokens": 0}', "Invalid 'max_tokens'"),
        (b'{"model": "good", "messages": [{}], "metadata": {"sim_prompt_tokens": "many"}}', "Invalid 'sim_prompt_tokens'"),
        (b'{"model": "good", "messages": [{}], "tools": [{}]}', "Invalid 'tools[0].function.name'"),
    ],
)
async def test_bad_requests_are_refused_as_openai_refuses_them(url: str, body: bytes, message: str) -> None:
    async with aiohttp.ClientSession() as http, http.post(f"{url}/v1/chat/completions", data=body) as answer:
        assert answer.status == 400
        error = (await answer.json())["error"]
        assert message in error["message"]
        assert error["type"] == "invalid_request_error"


async def test_unknown_models_and_addresses_are_404(client: openai.AsyncOpenAI, url: str) -> None:
    with pytest.raises(openai.NotFoundError, match="The model `nobody` does not exist") as caught:
        await client.chat.completions.create(model="nobody", messages=ASK["messages"])
    assert caught.value.code == "model_not_found"
    async with aiohttp.ClientSession() as http, http.get(f"{url}/v2/nothing") as answer:
        assert answer.status == 404


async def test_behaviour_changes_live_and_wrong_changes_change_nothing(url: str, client: openai.AsyncOpenAI) -> None:
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{url}/control/models/good", json={"errors": {"server_error": "100%"}}) as answer:
            assert (await answer.json())["behaviour"]["errors"]["server_error"] == 1.0
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="good", messages=ASK["messages"])
        async with http.post(f"{url}/control/models/good", json={"errors": {"server_eror": 0}}) as answer:
            assert (answer.status, (await answer.json())["error"][:42]) == (400, "model good: errors.server_eror: unknown fi")
        async with http.post(f"{url}/control/models/fresh", json={"latency_mult": 0}) as answer:
            assert answer.status == 200
        async with http.get(f"{url}/control/models") as answer:
            state = {m["name"]: m for m in (await answer.json())["models"]}
        async with http.get(f"{url}/control/models/nobody") as answer:
            assert answer.status == 404
    assert state["good"]["outcomes"] == {"server_error": 1}
    assert "fresh" in state


async def test_a_client_that_leaves_is_noticed(provider: Provider, url: str) -> None:
    async with aiohttp.ClientSession() as http:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await http.post(f"{url}/v1/chat/completions", json={**ASK, "model": "slow"})
    async with asyncio.timeout(10):
        while provider.cancelled == 0:
            await asyncio.sleep(0.01)
    assert provider.cancelled == 1


def test_the_command_line_names_what_is_wrong(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "s.yaml"
    bad.write_text("models: {m: {speed: 1}}")
    assert main(["--config", str(bad)]) == 2
    assert f"{bad}:1:14: models.m.speed: unknown field" in capsys.readouterr().err
    assert main(["--listen", "nowhere", "--model", "m"]) == 2
    assert "'nowhere' is not an address" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2


class Reading(BaseModel):
    """What an application may ask an answer to be."""

    gate: Literal["upper", "lower"]
    litres: list[int]
    note: str | None


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_has_the_schema_and_a_call_the_arguments_that_were_asked_for(
    client: openai.AsyncOpenAI, stream: bool
) -> None:
    asked: Any = {"model": "good", **ASK}
    tool: Any = openai.pydantic_function_tool(Reading, name="note_down")
    if stream:
        async with client.chat.completions.stream(**asked, response_format=Reading) as events:
            parsed = (await events.get_final_completion()).choices[0].message.parsed
        choice = {"type": "function", "function": {"name": "note_down"}}
        async with client.chat.completions.stream(**asked, tools=[tool], tool_choice=choice) as events:
            calls = (await events.get_final_completion()).choices[0].message.tool_calls
    else:
        parsed = (await client.chat.completions.parse(**asked, response_format=Reading)).choices[0].message.parsed
        choice = {"type": "function", "function": {"name": "note_down"}}
        calls = (await client.chat.completions.parse(**asked, tools=[tool], tool_choice=choice)).choices[0].message.tool_calls
    assert isinstance(parsed, Reading) and parsed.gate == "upper"
    assert calls and isinstance(calls[0].function.parsed_arguments, Reading)
    response = await client.responses.parse(model="good", input="How much?", text_format=Reading)
    assert isinstance(response.output_parsed, Reading)
