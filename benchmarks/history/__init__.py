"""Histories of runs: what clients and workers saw while processes were killed, and whether it keeps the promises."""
