"""`POST /caption` as server-sent events: `queued`, a `word` each, and `caption` with the whole answer; or `error`.

A model that can `stream` gives each word as soon as it has it, from the model's thread; of a search the words arrive together, behind it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine

from PIL import Image

from patchword.results import Caption
from patchword.serve.abilities import CaptionAnswer, StreamsWords
from patchword.serve.batching import Batcher, Job
from patchword.serve.refusals import Refusal


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


def streamed(model: StreamsWords, picture: Image.Image, trace: bool, words: Words) -> Caption | None:
    """Run in the model's thread: every word to `words`, and the caption at the end; None where nobody wants it any more."""
    steps = model.stream(picture, trace=trace)
    while not words.unwanted:
        try:
            words.put(next(steps))
        except StopIteration as ended:
            return ended.value
    steps.close()
    return None


async def events(batcher: Batcher, job: Job, answer: Coroutine[None, None, CaptionAnswer], words: Words | None) -> AsyncIterator[str]:
    """The events of one caption; `words` where the model streams them. The client's going away cancels this generator, and with it the
    job."""
    found = asyncio.ensure_future(answer)
    if words is not None:
        found.add_done_callback(lambda _: words.end())
    try:
        yield _event("queued", {"waiting": batcher.waiting})
        sent = 0
        if words is not None:
            async for word in words:
                yield _event("word", {"position": sent, "token": word})
                sent += 1
        whole = await found
        for position, token in enumerate(whole.tokens[sent:], sent):
            yield _event("word", {"position": position, "token": token})
        yield _event("caption", whole.model_dump(mode="json"))
    except Refusal as refusal:
        yield _event("error", refusal.body()["error"])
    finally:
        if words is not None:
            words.unwanted = True
        found.cancel()
        batcher.leave(job)


def _event(kind: str, data: object) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
