"""`POST /caption` as server-sent events: `queued`, a `word` each, and `caption` with the whole answer; or `error`.

A model that can `stream` gives each word as soon as it has it, from the model's thread. A search with beams knows its first word only when
it has ended: until then the words of a greedy caption arrive as `draft`, and its own words behind it, together.
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
    """Words on their way from the model's thread to one response. To be made within the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self.unwanted = False
        """Set when nobody reads any more: the model stops at the next word."""

    def put(self, word: str) -> None:
        """Called from the model's thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, word)

    def end(self) -> None:
        """No more words come. Called from the event loop."""
        self._queue.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[str]:
        while (word := await self._queue.get()) is not None:
            yield word


def streamed(model: WordStreamer, picture: Image.Image, trace: bool, words: Words) -> Caption | None:
    """Run in the model's thread: every word to `words`, and the caption at the end; None where nobody wants it any more."""
    steps = model.stream(picture, trace=trace)
    while not words.unwanted:
        try:
            words.put(next(steps))
        except StopIteration as ended:
            return ended.value
    steps.close()
    return None


class WordStream:
    """One job whose words are told while it runs; `words` where its model streams them. To be made within the event loop."""

    def __init__(
        self, batcher: Batcher, job: Job, answer: Coroutine[None, None, CaptionAnswer], words: Words | None
    ) -> None:
        self._batcher, self._job, self._words = batcher, job, words
        self.answer = asyncio.ensure_future(answer)
        if words is not None:
            self.answer.add_done_callback(lambda _: words.end())

    async def as_events(self, kind: str) -> AsyncIterator[str]:
        """An event per word; those that did not come one by one follow when the answer is there. Raises `Refusal`."""
        sent = 0
        if self._words is not None:
            async for word in self._words:
                yield _event(kind, {"position": sent, "token": word})
                sent += 1
        for position, token in enumerate((await self.answer).tokens[sent:], sent):
            yield _event(kind, {"position": position, "token": token})

    def leave(self) -> None:
        """Nobody listens any more; what has ended is not changed."""
        if self._words is not None:
            self._words.unwanted = True
        self.answer.cancel()
        self._batcher.leave(self._job)


async def events(
    waiting: int, first: WordStream, then: Callable[[], WordStream] | None
) -> AsyncIterator[str]:
    """The events of one caption. With `then`, `first` is a draft, and the caption is that of `then()`, called when the draft has ended.
    The client's going away cancels this generator, and with it the job."""
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
