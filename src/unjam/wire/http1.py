"""HTTP/1.1 in one import: readers, heads, bodies, serialisers. No I/O; see the modules for what each promises."""

from unjam.wire.chunked import LAST_CHUNK, ChunkedReader, chunk
from unjam.wire.errors import REASONS, Malformed
from unjam.wire.grammar import Limits
from unjam.wire.request import METHODS, RequestHead, RequestReader
from unjam.wire.response import RESPONSE_LIMITS, Body, ResponseHead, ResponseReader
from unjam.wire.serialise import field_line, request_head, response_head, status_line

__all__ = [
    "LAST_CHUNK",
    "METHODS",
    "REASONS",
    "RESPONSE_LIMITS",
    "Body",
    "ChunkedReader",
    "Limits",
    "Malformed",
    "RequestHead",
    "RequestReader",
    "ResponseHead",
    "ResponseReader",
    "chunk",
    "field_line",
    "request_head",
    "response_head",
    "status_line",
]
