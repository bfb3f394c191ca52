"""A plain SSE server on aiohttp and uvloop, as one writes it in an hour. Speaks `bench.peers.hubs.EventsWire`."""

import asyncio
import sys
from collections import defaultdict

import uvloop
from aiohttp import web

CHANNELS: defaultdict[str, set[web.StreamResponse]] = defaultdict(set)


async def events(request: web.Request) -> web.StreamResponse:
    """Stream what is published to the user and the room, until the client goes."""
    channels = [CHANNELS[name] for name in (request.query["user"], request.query["room"]) if name]
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await response.prepare(request)
    await response.write(b": hello\n\n")
    for channel in channels:
        channel.add(response)
    try:
        await asyncio.Event().wait()
    finally:
        for channel in channels:
            channel.discard(response)
    return response


async def publish(request: web.Request) -> web.Response:
    """Write the body to every subscriber of a channel."""
    frame = b"data: " + await request.read() + b"\n\n"
    for response in list(CHANNELS[request.query["to"]]):
        await response.write(frame)
    return web.Response(status=204)


async def nothing(request: web.Request) -> web.Response:
    """Answer."""
    return web.Response(status=204)


async def main(port: int) -> None:
    """Serve for ever."""
    app = web.Application()
    app.add_routes([web.get("/events", events), web.post("/publish", publish), web.get("/nothing", nothing)])
    # A handler that waits for ever has to be cancelled when its client goes.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, keepalive_timeout=3600)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=65535).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
