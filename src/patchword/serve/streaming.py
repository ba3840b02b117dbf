"""Streams `POST /caption` as server-sent events: `queued`, one `word` each, `caption`, or `error`.

The last event has the whole answer. A model that can `stream` sends each word as soon as it is decoded, from
the model's thread. A beam search knows its first word only at its end; until then the words of a greedy
caption are sent as `draft`, and the search's own words follow together.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine

from PIL import Image

from patchword.serve.abilities import CaptionAnswer, WordStreamer
from patchword.serve.batching import Batcher, Job
from patchword.serve.refusals import Refusal
from patchword.tasks.caption.result import Caption


class Words:
    """Passes words from the model's thread to one response. Create it within the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self.unwanted = False
        """Set when nobody reads any more; the model stops at the next word."""

    def put(self, word: str) -> None:
        """Adds a word; called from the model's thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, word)

    def end(self) -> None:
        """Marks the end of the words; called from the event loop."""
        self._queue.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[str]:
        while (word := await self._queue.get()) is not None:
            yield word


def streamed(model: WordStreamer, picture: Image.Image, trace: bool, words: Words) -> Caption | None:
    """Passes every word to `words` and returns the caption, or None where nobody reads any more.

    It runs in the model's thread.
    """
    steps = model.stream(picture, trace=trace)
    while not words.unwanted:
        try:
            words.put(next(steps))
        except StopIteration as ended:
            return ended.value
    steps.close()
    return None


class WordStream:
    """One job whose words are sent while it runs; `words` is set where its model streams them.

    Create it within the event loop.
    """

    def __init__(
        self, batcher: Batcher, job: Job, answer: Coroutine[None, None, CaptionAnswer], words: Words | None
    ) -> None:
        self._batcher, self._job, self._words = batcher, job, words
        self.answer = asyncio.ensure_future(answer)
        if words is not None:
            self.answer.add_done_callback(lambda _: words.end())

    async def as_events(self, kind: str) -> AsyncIterator[str]:
        """Yields an event per word; words that were not streamed follow when the answer is complete.

        Raises `Refusal`.
        """
        sent = 0
        if self._words is not None:
            async for word in self._words:
                yield _event(kind, {"position": sent, "token": word})
                sent += 1
        for position, token in enumerate((await self.answer).tokens[sent:], sent):
            yield _event(kind, {"position": position, "token": token})

    def leave(self) -> None:
        """Cancels the job, because nobody reads any more; a job that has ended is not changed."""
        if self._words is not None:
            self._words.unwanted = True
        self.answer.cancel()
        self._batcher.leave(self._job)


async def events(
    waiting: int, first: WordStream, then: Callable[[], WordStream] | None
) -> AsyncIterator[str]:
    """Yields the events of one caption.

    With `then`, `first` is a draft, and the caption is that of `then()`, called when the draft has ended.
    When the client leaves, this generator is cancelled, and the job with it.
    """
    telling = first
    try:
        yield _event("queued", {"waiting": waiting})
        if then is not None:
            async for event in first.as_events("draft"):
                yield event
            telling = then()
        async for event in telling.as_events("word"):
            yield event
        yield _event("caption", (await telling.answer).model_dump(mode="json"))
    except Refusal as refusal:
        yield _event("error", refusal.body()["error"])
    finally:
        telling.leave()


def _event(kind: str, data: object) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
