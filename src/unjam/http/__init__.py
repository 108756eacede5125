"""A small strict HTTP/1.1 client over asyncio streams, for what runs beside users' code: reporter, worker, client.

Lean on purpose: the standard library only.
"""
