# ruff: noqa: PT017, PT018
"""OpenAI's own client for Python, of an event loop: what other tests ask through the plain one."""

import asyncio
import base64
import os

import openai

URL = os.environ["EDUCE_URL"]
MESSAGES = [{"role": "user", "content": "Once upon a time"}]
CHAT = {"model": "writer", "messages": MESSAGES, "max_tokens": 8, "temperature": 0}


async def chats(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(**CHAT)
    chunks = [each async for each in await client.chat.completions.create(**CHAT, stream=True)]
    assert "".join(each.choices[0].delta.content or "" for each in chunks) == whole.choices[0].message.content
    async with client.chat.completions.stream(**CHAT) as stream:
        await stream.until_done()
    final = stream.current_completion_snapshot
    assert final.choices[0].message.content == whole.choices[0].message.content
    many = await asyncio.gather(*(client.chat.completions.create(**CHAT) for _ in range(16)))
    assert {each.choices[0].message.content for each in many} == {whole.choices[0].message.content}
    raw = await client.chat.completions.with_raw_response.create(**CHAT)
    assert raw.headers["x-request-id"] and raw.parse().usage == whole.usage


async def texts(client: openai.AsyncOpenAI) -> None:
    asked = {"model": "writer", "prompt": "Once upon a time", "max_tokens": 6, "temperature": 0}
    whole = await client.completions.create(**asked)
    chunks = [each async for each in await client.completions.create(**asked, stream=True)]
    assert "".join(each.choices[0].text for each in chunks) == whole.choices[0].text


async def responses(client: openai.AsyncOpenAI) -> None:
    asked = {"model": "writer", "input": "Once upon a time", "max_output_tokens": 8, "temperature": 0}
    whole = await client.responses.create(**asked)
    async with client.responses.stream(**asked) as stream:
        events = [each async for each in stream]
    assert events[-1].response.output_text == whole.output_text


async def vectors(client: openai.AsyncOpenAI) -> None:
    asked = {"model": "embedder", "input": ["a text", "another"]}
    packed = await client.embeddings.create(**asked)
    plain = await client.embeddings.create(**asked, encoding_format="float")
    for one, two in zip(packed.data, plain.data, strict=True):
        assert max(abs(a - b) for a, b in zip(one.embedding, two.embedding, strict=True)) < 1e-6


async def sounds(client: openai.AsyncOpenAI) -> None:
    file = ("sound.wav", base64.b64decode(os.environ["EDUCE_SOUND"]))
    asked = {"model": "transcriber", "file": file, "language": "en"}
    whole = await client.audio.transcriptions.create(**asked)
    events = [each async for each in await client.audio.transcriptions.create(**asked, stream=True)]
    assert events[-1].text == whole.text


async def faults(client: openai.AsyncOpenAI) -> None:
    for kind, changes in (
        (openai.NotFoundError, {"model": "none"}),
        (openai.BadRequestError, {"temperature": -1}),
        (openai.BadRequestError, {"model": "embedder"}),
    ):
        try:
            await client.chat.completions.create(**{**CHAT, **changes})
        except kind as fault:
            assert fault.param == next(iter(changes)), fault
        else:
            raise AssertionError(kind)
    keyed = client.with_options(base_url=f"{os.environ['EDUCE_KEYED_URL']}/v1")
    try:
        await keyed.models.list()
    except openai.AuthenticationError as fault:
        assert fault.code == "invalid_api_key"
    else:
        raise AssertionError("a wrong key is taken")


async def main() -> None:
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0) as client:
        assert "writer" in [each.id async for each in client.models.list()]
        for each in (chats, texts, responses, vectors, sounds, faults):
            await each(client)


asyncio.run(main())
