"""An endpoint process to kill: `python endpoint.py KIND` prints its port, then answers part of something and waits."""

from __future__ import annotations

import asyncio
import sys

STARTS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "events": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    "closing": b"HTTP/1.1 200 OK\r\n\r\n",
    "silent": b"",
}


def piece(kind: str, number: int) -> bytes:
    if kind == "silent":
        return b""
    payload = b"data: %d\n\n" % number if kind == "events" else b"piece %d\n" % number
    return b"%x\r\n%b\r\n" % (len(payload), payload) if kind in ("chunked", "events") else payload


async def main(kind: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(STARTS[kind])
        for number in range(3):
            writer.write(piece(kind, number))
        await writer.drain()
        print("began", flush=True)
        await reader.read()
        await asyncio.Event().wait()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print("port", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
