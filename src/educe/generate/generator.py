"""`Generator`: a language model that continues texts, answers in conversations, and weighs what it reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import Any

import numpy as np

from educe.errors import EduceError, InputError, ModelFileError, OptionError, refuse_unknown
from educe.generate import sequence as texts
from educe.generate.batch import Batch, Request, split
from educe.generate.blocks import BlockManager
from educe.generate.capacity import MOST_DRAFT_TOKENS, MOST_SEQUENCES, context_length, num_blocks
from educe.generate.draft_model import DraftModel
from educe.generate.engine import Engine
from educe.generate.options import MOST_LOGPROBS, check_number
from educe.generate.order import OPTIONS, OrderReader
from educe.generate.parameters import Progress
from educe.generate.perplexity import Perplexity, Window, windows
from educe.generate.runners import runner_for
from educe.generate.scheduler import Scheduler
from educe.generate.statistics import Statistics
from educe.generate.stream import Completion, Score, Stream
from educe.generate.texts import several
from educe.generate.writing import Scoring
from educe.limits import DEFAULT_LIMITS, Limits, format_bytes
from educe.model.checkpoint import Checkpoint
from educe.text.prompt import Message, Prompt, PromptReader, is_conversation
from educe.text.tokenizer import Tokenizer

_TOKEN_BUDGET = 512
# A step in which others write reads so many tokens of prompts that it takes less than twice as long.
_PREFILL_SHARE = 0.0625


class Generator:
    """A language model, ready to write. It may be used by many threads and event loops at once.

    Their requests run together, each as if it were alone: the same request gives the same bits.

    Args:
        checkpoint: The model.
        precision: How weights are held and products computed, one of `PRECISIONS`.
        cache: How keys and values are held, one of `CACHES`.
        context: Most tokens of a prompt and its text together; what the model was made for if absent.
        memory_bytes: Memory of the cache of keys and values; if absent, what the texts that run at once can
            need, up to a quarter of the machine's.
        max_sequences: Most texts that are written at once, to 1,024; others wait.
        threads: Threads of a step; the machine's cores if absent.
        lookup: Whether tokens are guessed from what stood before, and verified: the texts are the same, those
            that quote come sooner.
        draft: A smaller model of the same vocabulary that guesses instead, until it fails.
        num_draft_tokens: How many tokens it guesses, to 64.
        progress: What is told, from 0 to 1, of the packing of weights, and of which.
        limits: The bounds on texts, templates and grammars.

    Attributes:
        checkpoint: The model.
        notes: What was noticed while loading that a user should know.
        tokenizer: What makes tokens of texts.
        context: Most tokens of a prompt and its text together.
        defaults: How tokens are chosen where a request does not say: as the model's generation_config.json
            does, or the likeliest one if there is none.

    Raises:
        ModelFileError: the files lack a tokenizer, or are broken.
        UnsupportedModelError: the model is of a kind that Educe does not run.
        OptionError: the numbers do not fit each other, or the memory is too small.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        precision: str = "auto",
        cache: str = "bf16",
        context: int | None = None,
        memory_bytes: int | None = None,
        max_sequences: int = 16,
        threads: int | None = None,
        lookup: bool = True,
        draft: Checkpoint | None = None,
        num_draft_tokens: int = 4,
        progress: Progress | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        check_number("max_sequences", max_sequences, 1, MOST_SEQUENCES, True)
        check_number("num_draft_tokens", num_draft_tokens, 1, MOST_DRAFT_TOKENS, True)
        if draft is not None:
            _check_draft(checkpoint, draft)
        kind = runner_for(checkpoint)
        if checkpoint.tokenizer is None:
            raise ModelFileError(
                "has no tokenizer",
                path=checkpoint.path,
                remedy="put tokenizer.json beside the weights, as the model's publisher has it",
            )
        self.checkpoint = checkpoint
        self._lookup = lookup and kind.takes_drafts and draft is None
        # Before the weights: what reading a vocabulary takes is free again when these come.
        prompts = PromptReader(checkpoint, limits)
        wanted = context_length(checkpoint.config, context)
        budget = max(_TOKEN_BUDGET, 2 * max_sequences)
        runners = [
            runner_for(each)(
                each,
                max_length=wanted,
                max_sequences=max_sequences,
                max_tokens=budget,
                precision=precision,
                cache=cache,
                threads=threads,
                progress=progress,
            )
            for each in (checkpoint, draft)
            if each is not None
        ]
        self.notes = (*checkpoint.notes, *runners[0].notes)
        block_bytes = sum(runner.block_bytes for runner in runners)
        block_size = runners[0].block_size
        blocks = num_blocks(block_bytes, block_size, wanted, max_sequences, memory_bytes)
        for runner in runners:
            runner.allocate(blocks)
        scheduler = Scheduler(
            BlockManager(blocks, block_size),
            max_length=wanted,
            token_budget=budget,
            max_sequences=max_sequences,
            prefill_share=_PREFILL_SHARE,
            sizes=runners[0].sizes,
        )
        self.context = scheduler.max_length
        if context is not None and context > self.context:
            raise OptionError(
                f"{context:,} tokens do not fit into {format_bytes(blocks * block_bytes)}",
                place="context",
                remedy=f"at most {self.context:,} do; or give more memory_bytes",
            )
        self._orders = OrderReader(prompts, checkpoint, self.context, limits)
        self.tokenizer: Tokenizer = prompts.tokenizer
        self.defaults = self._orders.defaults
        drafts = DraftModel(runners[1], num_draft_tokens) if draft is not None else None
        self._engine = Engine(runners[0], scheduler, draft=drafts)

    # Writing -------------------------------------------------------------------------------------------

    def generate(self, prompt: Prompt, **options: Any) -> Completion:
        """Return what the model writes after a prompt; see `stream`."""
        return self.stream(prompt, **options).result()

    def chat(self, messages: str | Sequence[Message], **options: Any) -> Completion:
        """Return the answer to a conversation; see `stream`.

        Args:
            messages: What was said so far; a text alone is one message of the user's.
            **options: Those of `stream`.

        Raises:
            InputError: it is no conversation.
        """
        said = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        if not is_conversation(said):
            raise InputError(
                "it is no conversation",
                place="messages",
                remedy='give [{"role": "user", "content": …}]; or continue a text or tokens with generate',
            )
        return self.stream(said, **options).result()

    def stream(self, prompt: Prompt, **options: Any) -> Stream:
        """Return a text while it is written: iterate over it, in a thread or with ``async for``.

        Args:
            prompt: A text to continue, its tokens, or a conversation: messages with ``role`` and ``content``.
            **options: The fields of `SamplingOptions`; at most one of `json_schema`, `json_object`, `regex`,
                `choice` and `grammar`, which the text then follows; and

                - `tools`: in a conversation, what the model may call, as JSON schemas of functions;
                - `tool_choice`: ``auto``, ``none``, ``required``, or the one to call, by its name or in
                  OpenAI's form;
                - `tool_format`: how the model writes calls, one of `FORMATS`; as its chat template does if
                  absent;
                - `parallel_tool_calls`: whether a text may have several calls, True if absent; else it ends
                  after one;
                - `template_options`: in a conversation, further variables of the chat template, such as
                  ``{"enable_thinking": False}``;
                - `priority`: lower numbers go first, 0 if absent;
                - `salt`: only requests of one salt share what is cached, such as those of one tenant.

        None as an option leaves it out; numbers and tokens may be NumPy's.

        Raises:
            InputError: the prompt is empty, or does not fit with `max_tokens`; it is never cut.
            OptionError: an option is unknown, or has a value that it does not take.
            UnsupportedModelError: a conversation, and the model has no chat template; or tools, and it has no
                form for their calls.
        """
        order = self._orders.read(prompt, **options)
        return self._engine.write(order, lookup=self._lookup)

    def batch(self, prompts: Iterable[Request], **options: Any) -> Batch:
        """Return what is written after each of many prompts, in their order, as many at once as may run.

        A prompt that fails gives its error in its place, and costs no other its text. Prompts are taken as
        they are needed, so that they may be without end. A thread reads them, or
        ``async for``; whoever leaves early, or drops them, cancels what is under way.

        Args:
            prompts: The prompts; a mapping has options of its own, which come before those of all.
            **options: Those of `stream`.

        Raises:
            InputError: `prompts` is a single prompt.
            OptionError: an option is unknown.
        """
        refuse_unknown("option", options, OPTIONS)
        most = 2 * self._engine.max_sequences
        return Batch((self._attempt(prompt, options) for prompt in several(prompts, "many prompts")), most)

    # Reading -------------------------------------------------------------------------------------------

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the tokens of a prompt as the model reads them.

        Raises:
            InputError: it is no prompt.
            UnsupportedModelError: a conversation, and the model has no chat template.
        """
        return self._orders.encode(prompt)

    def score(self, text: str | Sequence[int], *, after: str = "", top: int = 1) -> Score:
        """Return how likely a text is.

        Args:
            text: The text, or its tokens, of which the first one is only read.
            after: The text before it.
            top: How many of the likeliest tokens come with each token, from 1 to 20.

        Raises:
            InputError: there is nothing to weigh, or it does not fit into the context.
            OptionError: `top` is out of range.
        """
        stream, scoring = self.begin_score(text, after=after, top=top)
        stream.result()
        return Score(tuple(scoring.choices))

    def begin_score(
        self, text: str | Sequence[int], *, after: str = "", top: int = 1
    ) -> tuple[Stream, Scoring]:
        """Return a stream, without text, at whose end the scoring has all choices; `score` has the rest."""
        check_number("top", top, 1, MOST_LOGPROBS, True)
        if not isinstance(after, str):
            raise InputError(f"is a {type(after).__name__}, no text", place="after", remedy="give a text")
        whole = after + text if isinstance(text, str) else text
        self._orders.refuse_longer(whole)
        ids, start = self._orders.encode(whole), 1
        if isinstance(text, str):
            start = max(1, _num_shared(ids, self._orders.encode(after)))
        if len(ids) > self.context:
            raise InputError(
                f"the text has {len(ids):,} tokens, and the context {self.context:,}",
                too_long=True,
                remedy="take it in parts; or weigh it in windows, with perplexity",
            )
        if start >= len(ids):
            raise InputError(
                "there is nothing to weigh", remedy="give a text, with at least one token before it"
            )
        sequence = texts.Sequence(ids, max_tokens=0, logits_from=start - 1)
        return self._engine.score(sequence, top)

    def perplexity(
        self,
        text: str,
        *,
        window: int | None = None,
        stride: int | None = None,
        progress: Callable[[int, int], object] = lambda done, total: None,
        **unknown: Any,
    ) -> Perplexity:
        """Return how well a text of any length is foretold; each of its tokens counts once.

        Args:
            text: The text.
            window: Most tokens that are read at once; the context if absent.
            stride: How many tokens each further window counts; half a window if absent.
            progress: Called with how many tokens have been counted, of how many.

        Raises:
            InputError: the text is too short, or is none.
            OptionError: window and stride do not fit each other, or the context.
        """
        refuse_unknown("option", unknown, ("window", "stride", "progress"))
        if not isinstance(text, str):
            raise InputError(f"a {type(text).__name__} is no text", remedy="give a text")
        for name, value in (("window", window), ("stride", stride)):
            if value is not None:
                check_number(name, value, -math.inf, math.inf, True)
        size = self.context if window is None else window
        if not 1 <= size <= self.context:
            raise OptionError(f"expected 1 to {self.context:,} tokens, found {size:,}", place="window")
        ids = self._orders.encode(text)
        num_special = _num_shared(ids, self._orders.encode(""))
        parts = windows(ids, num_special, size, max(1, size // 2) if stride is None else stride)
        logprobs: list[float] = []
        while group := list(islice(parts, self._engine.max_sequences)):
            logprobs += self._weigh(group)
            progress(len(logprobs), len(ids) - (num_special or 1))
        unread = b"" if num_special else self.tokenizer.token_bytes(ids[0])
        return Perplexity(np.array(logprobs), len(text.encode()) - len(unread))

    def _weigh(self, group: Sequence[Window]) -> Iterator[float]:
        """Yield the log-probabilities of the tokens that count in some windows, which are read at once."""
        sequences = [
            texts.Sequence(part.tokens, max_tokens=0, logits_from=len(part.tokens) - part.num_counted - 1)
            for part in group
        ]
        readings = [self._engine.score(sequence, 0) for sequence in sequences]
        try:
            for stream, scoring in readings:
                stream.result()
                yield from (choice.logprob or 0.0 for choice in scoring.choices)
        finally:
            for stream, _ in readings:
                stream.cancel()

    def prepare(self) -> None:
        """Wait until all programs are made, so that no text waits for one: what a server is ready after.

        They are made while no text is written, whether or not anyone waits.

        Raises:
            OptionError: the generator is closed.
        """
        self._engine.prepare()

    @property
    def running_seconds(self) -> float:
        """For how long the present step of all texts has lasted; 0 if there is none."""
        return self._engine.running_seconds

    def statistics(self) -> Statistics:
        """Return what is under way, how much of the cache is used, and what has been done so far."""
        return self._engine.statistics()

    def close(self) -> None:
        """End all texts, and return the memory; the generator is of no use afterwards."""
        self._engine.close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Generator {self.checkpoint.model_type} {self.checkpoint.path}>"

    def _attempt(self, request: Request, options: Mapping[str, Any]) -> Stream | EduceError:
        try:
            prompt, own = split(request)
            return self.stream(prompt, **{**options, **own})
        except EduceError as error:
            return error


def _check_draft(checkpoint: Checkpoint, draft: Checkpoint) -> None:
    """Raise OptionError if a model cannot guess for another one."""
    sizes = [int(each.config["vocab_size"]) for each in (checkpoint, draft)]
    if sizes[0] != sizes[1]:
        raise OptionError(
            f"it has {sizes[1]:,} tokens, and the model that it is to guess for {sizes[0]:,}",
            place="draft",
            remedy="give a smaller model of the same family",
        )
    for each in (checkpoint, draft):
        if not runner_for(each).takes_drafts:
            cause = f"models of the type {each.model_type!r} neither guess nor verify"
            raise OptionError(cause, place="draft", remedy="leave it out")


def _num_shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """Return how many first tokens are the same."""
    count = 0
    for one, other in zip(ids, others, strict=False):
        if one != other:
            break
        count += 1
    return count
