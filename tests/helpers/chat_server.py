"""A chat service on the loopback interface that counts what it is asked, and a client that waits for nothing long."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from synopsis.config.files import JudgeDefinition
from synopsis.stages.judge.pairs import Pair

Answer = Callable[[str, int], Awaitable[tuple[int, str, str] | None]]
"""Of a prompt and how often it was asked before: status, further headers and body; None to cut the connection."""


def completion(text: str) -> str:
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    head = {"id": "c", "object": "chat.completion", "created": 1, "model": "served-model"}
    return json.dumps({**head, "choices": choices, "usage": usage})


class ChatServer:
    """Serves in a thread while it is used as a context manager.

    asked: requests by prompt; answered: those of them that got a chat completion; last_request: its body.
    """

    def __init__(self, answer: Answer):
        self.answer, self.asked, self.answered = answer, Counter[str](), Counter[str]()
        self.url, self.last_request = "", {}
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> ChatServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join()

    def _serve(self) -> None:
        async def main() -> None:
            server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            self._ready.set()
            await asyncio.Event().wait()

        self._main = self._loop.create_task(main())
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._main)
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            while True:
                length = re.search(rb"content-length: (\d+)", await reader.readuntil(b"\r\n\r\n"), re.I)
                assert length is not None
                self.last_request = json.loads(await reader.readexactly(int(length[1])))
                prompt = self.last_request["messages"][0]["content"]
                self.asked[prompt] += 1
                answer = await self.answer(prompt, self.asked[prompt] - 1)
                if answer is None:
                    return
                status, headers, body = answer
                head = f"HTTP/1.1 {status} x\r\ncontent-type: application/json\r\n{headers}"
                writer.write(f"{head}content-length: {len(body.encode())}\r\n\r\n{body}".encode())
                await writer.drain()
                self.answered[prompt] += status == 200 and body.startswith('{"id"')


def judge_quickly(definition: JudgeDefinition, pairs: list[Pair], store: Path) -> None:
    """The client: run it in a process of its own, which can be killed."""
    from synopsis.stages.judge import chat
    from synopsis.stages.judge.run import hash_of, judge_pairs

    chat.FIRST_PAUSE_SECONDS = 0.01
    chat.LONGEST_PAUSE_SECONDS = 0.05
    judge_pairs("chat", definition, pairs, store, hash_of(definition))


if __name__ == "__main__":  # for a client that is timed: the service does its work in a process of its own

    async def answer(prompt: str, earlier: int) -> tuple[int, str, str]:
        await asyncio.sleep(float(sys.argv[1]))
        return 200, "", completion('{"reason": "so", "choice": 0}')

    with ChatServer(answer) as server:
        print(server.url, flush=True)
        sys.stdin.read()
