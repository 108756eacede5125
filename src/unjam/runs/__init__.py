"""Durable runs: the states (`machine`), what a run is (`model`), and where runs are kept (`store`).

Nothing here knows of HTTP, endpoints or configuration: gateway, worker and client stand on it.
"""
