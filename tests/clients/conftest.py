"""Servers of real models, and the environment in which clients find them."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator

import numpy as np
import pytest

from educe.serve import ModelSource
from tests.conftest import ROOT
from tests.serve.conftest import Client, serving
from tests.serve.models import wav, write_embedder, write_transcriber

KEY = "the-key-of-a-client-0123456789"
TEMPLATE = """{{ bos_token }}{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}
{% for message in messages %}{{ message.content }}
{% for call in message.tool_calls or [] %}<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}{% endfor %}"""
STORIES = ROOT / "zoo" / "stories260K"
WRITER = ModelSource("writer", STORIES, {"chat_template": TEMPLATE})


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a server with models of every kind, which models may be loaded into."""
    folder = tmp_path_factory.mktemp("models")
    made = [
        ModelSource("embedder", write_embedder(folder / "embedder")),
        ModelSource("transcriber", write_transcriber(folder / "transcriber")),
    ]
    zoo = ("stories260K", "breast_cancer", "mobilenet_v2", "comment_spam", "en_fr_char_lstm")
    with serving(WRITER, *made, *zoo, grpc_port=0, admin=True) as found:
        yield found


@pytest.fixture(scope="session")
def environment(client: Client) -> Iterator[dict[str, str]]:
    """Where clients find the server, one with a key, and one that is soon full; and a sound."""
    with serving(WRITER, api_keys=(KEY,)) as keyed, serving(WRITER, max_waiting=1) as full:
        yield {
            **os.environ,
            "EDUCE_URL": client.url,
            "EDUCE_GRPC": client.grpc_address,
            "EDUCE_KEYED_URL": keyed.url,
            "EDUCE_FULL_URL": full.url,
            "EDUCE_SOUND": base64.b64encode(sound()).decode(),
        }


def sound() -> bytes:
    """Return two seconds of noise as a WAV file."""
    samples = np.random.default_rng(4).integers(-9000, 9000, 32_000, np.int16)
    return wav(samples)
