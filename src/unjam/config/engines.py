"""What inference engines call their figures on their Prometheus pages, so that `metrics: vllm` is enough.

Of several names for one figure the first that is on the page counts: engines rename. Where each is from is said in
docs/load-sources.md.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Names(NamedTuple):
    """Names of gauges: requests running, requests waiting, share 0 .. 1 of the key-value cache in use."""

    running: tuple[str, ...]
    waiting: tuple[str, ...]
    cache: tuple[str, ...] = ()


ENGINES: Final[dict[str, Names]] = {
    "vllm": Names(
        ("vllm:num_requests_running",),
        ("vllm:num_requests_waiting",),
        ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    ),
    "sglang": Names(
        ("sglang:num_running_reqs", "sglang_num_running_reqs"),
        ("sglang:num_queue_reqs", "sglang_num_queue_reqs"),
        ("sglang:token_usage", "sglang_token_usage"),
    ),
    "tgi": Names(("tgi_batch_current_size",), ("tgi_queue_size",)),
}
