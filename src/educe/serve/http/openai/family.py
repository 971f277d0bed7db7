"""`OpenAI`: all routes of the OpenAI API."""

from __future__ import annotations

from dataclasses import dataclass

from educe.serve.http.openai.audio import Audio
from educe.serve.http.openai.chat import Chat
from educe.serve.http.openai.completions import Completions
from educe.serve.http.openai.embeddings import Embeddings
from educe.serve.http.openai.models import Models
from educe.serve.http.openai.responses import Responses
from educe.serve.http.routes import Route
from educe.serve.inference import Inference


@dataclass(frozen=True)
class OpenAI:
    """The API's routes.

    Attributes:
        inference: What runs the models.
    """

    inference: Inference

    def routes(self) -> list[Route]:
        """Return the routes."""
        parts = (Models, Chat, Completions, Embeddings, Audio, Responses)
        return [route for part in parts for route in part(self.inference).routes()]
