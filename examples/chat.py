"""An OpenAI-compatible chat agent. Its model is a small Markov chain over chat_text.txt: real work, no download.

    python examples/chat.py --port 9004
    curl -N http://127.0.0.1:9004/v1/chat/completions -H 'content-type: application/json' \\
         -d '{"model": "harbour-1", "stream": true, "messages": [{"role": "user", "content": "Tell me of ships"}]}'

The same messages and `seed` give the same answer. `--pace` is the time per token, seconds. `--tokens-per-minute` is a
provider's quota: what is left is told in x-ratelimit-* headers, and beyond it the answer is 429 with retry-after.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agentkit import EventStream, Slots, arguments, make_app, serve, sse, unless_gone

MODEL = "harbour-1"


class Markov:
    """Words that followed each pair of words in the text; a token is a word."""

    def __init__(self, text: str) -> None:
        words = text.split()
        self.after: dict[tuple[str, str], list[str]] = defaultdict(list)
        for one, two, three in zip(words, words[1:], words[2:], strict=False):
            self.after[one, two].append(three)
        self.starts = sorted(pair for pair in self.after if pair[0][0].isupper())

    def tokens(self, rng: random.Random) -> Iterator[str]:
        """Ends at the first full stop after forty words."""
        pair = rng.choice(self.starts)
        yield pair[0]
        yield f" {pair[1]}"
        for count in itertools.count(3):
            if pair not in self.after:  # the text's last two words
                pair = rng.choice(self.starts)
            word = rng.choice(self.after[pair])
            yield f" {word}"
            pair = pair[1], word
            if count > 40 and word.endswith("."):
                return


class Quota:
    """A bucket of `per_minute` tokens that fills steadily."""

    def __init__(self, per_minute: float) -> None:
        self.per_minute, self.left, self.at = per_minute, per_minute, time.monotonic()

    def take(self, tokens: float) -> float:
        """0 when taken, else the seconds until there will be as many."""
        now = time.monotonic()
        self.left, self.at = min(self.per_minute, self.left + (now - self.at) * self.per_minute / 60), now
        if tokens > self.left:
            return (min(tokens, self.per_minute) - self.left) * 60 / self.per_minute
        self.left -= tokens
        return 0.0

    def headers(self) -> dict[str, str]:
        reset = (self.per_minute - self.left) * 60 / self.per_minute
        return {
            "x-ratelimit-limit-tokens": f"{self.per_minute:.0f}",
            "x-ratelimit-remaining-tokens": f"{max(0.0, self.left):.0f}",
            "x-ratelimit-reset-tokens": f"{reset:.3f}s",
        }


def problem(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> Response:
    kind = "invalid_request_error" if status < 429 else "rate_limit_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status, headers)


def routes(slots: Slots, pace: float, tokens_per_minute: float) -> list[Route]:
    model, quota, numbers = (
        Markov(Path(__file__).with_name("chat_text.txt").read_text()),
        Quota(tokens_per_minute),
        itertools.count(1),
    )

    async def models(_: Request) -> Response:
        return JSONResponse(
            {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "unjam"}]}
        )

    async def completions(request: Request) -> Response:
        try:
            asked = await request.json()
            messages = [(str(message["role"]), str(message["content"])) for message in asked["messages"]]
            most = int(asked.get("max_completion_tokens") or asked.get("max_tokens") or 256)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return problem(400, f"messages: a list of {{role, content}} is needed: {error!r}", "invalid_body")
        if asked.get("model") != MODEL:
            return problem(404, f"there is no model {asked.get('model')!r}; there is {MODEL!r}", "model_not_found")
        prompt = sum(len(content.split()) for _, content in messages)
        if wait := quota.take(prompt + most):
            headers = quota.headers() | {"retry-after": str(math.ceil(wait))}
            return problem(429, f"Rate limit reached; try again in {wait:.1f} s", "rate_limit_exceeded", headers)
        seed = hashlib.sha256(json.dumps([messages, asked.get("seed")]).encode()).digest()
        head = {"id": f"chatcmpl-{next(numbers)}", "created": int(time.time()), "model": MODEL}
        count, finish = 0, "stop"

        async def tokens() -> AsyncGenerator[str, None]:
            nonlocal count, finish
            try:
                async with slots:
                    for token in model.tokens(random.Random(seed)):
                        if count == most:
                            finish = "length"
                            return
                        await asyncio.sleep(pace)
                        count += 1
                        yield token
            finally:
                quota.left += most - count  # what was reserved and not used

        def usage() -> dict[str, int]:
            return {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}

        async def events() -> AsyncGenerator[bytes, None]:
            chunk = {**head, "object": "chat.completion.chunk"}

            def delta(said: dict[str, str], finish_reason: str | None = None) -> bytes:
                choice = {"index": 0, "delta": said, "logprobs": None, "finish_reason": finish_reason}
                return sse(None, {**chunk, "choices": [choice]})

            said: dict[str, str] = {"role": "assistant"}
            async with aclosing(tokens()) as words:
                async for token in words:
                    yield delta({**said, "content": token})
                    said = {}
            yield delta({}, finish)
            if (asked.get("stream_options") or {}).get("include_usage"):
                yield sse(None, {**chunk, "choices": [], "usage": usage()})
            yield b"data: [DONE]\n\n"

        async def answer() -> dict[str, Any]:
            content = "".join([token async for token in tokens()])
            message = {"role": "assistant", "content": content, "refusal": None}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
            return {**head, "object": "chat.completion", "choices": [choice], "usage": usage()}

        if asked.get("stream"):
            return EventStream(events(), quota.headers())
        return JSONResponse(await unless_gone(request, answer()), headers=quota.headers())

    return [Route("/v1/models", models), Route("/v1/chat/completions", completions, methods=["POST"])]


def main() -> None:
    parser = arguments(__doc__, slots=8)
    parser.add_argument("--pace", type=float, default=0.02, help="seconds per token (default %(default)s)")
    parser.add_argument("--tokens-per-minute", type=float, default=200_000, help="(default %(default)s)")
    options = parser.parse_args()
    slots = Slots(options.slots)
    serve(make_app(routes(slots, options.pace, options.tokens_per_minute), slots), options)


if __name__ == "__main__":
    main()
