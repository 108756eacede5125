"""What is wrong with bytes from a peer: one exception, one table.

Every refusal has a reason code that is stable (it is the metric label and the log field), a status for the client, and
a sentence that never quotes the peer's bytes. `docs/wire.md` lists the table.
"""

from __future__ import annotations

from typing import Literal

#: reason → (status, what is wrong). A malformed answer of an endpoint has the same reason and status 502.
REASONS: dict[str, tuple[int, str]] = {
    # the request line
    "empty_line": (400, "more than one empty line before the request line"),
    "bad_request_line": (400, "the request line is not METHOD SP target SP HTTP/1.1"),
    "unsupported_version": (505, "only HTTP/1.1 and HTTP/1.0 are spoken here"),
    "method_not_allowed": (405, "CONNECT and TRACE are not served"),
    "unknown_method": (501, "the method is not known"),
    "request_line_too_long": (414, "the request line is too long"),
    "bad_target": (400, "the request target is neither a path nor an http URL"),
    "bad_escape": (400, "the path holds a malformed percent escape"),
    "encoded_slash": (400, "the path holds an encoded slash"),
    "encoded_control": (400, "the path holds an encoded control character"),
    "backslash": (400, "the path holds a backslash"),
    "dot_segment": (400, "the path holds a dot segment with parameters"),
    # lines and fields
    "bare_cr_or_lf": (400, "CR or LF that is not part of CRLF"),
    "field_too_long": (431, "a header line is too long"),
    "head_too_large": (431, "the header section is too large"),
    "too_many_fields": (431, "there are too many header fields"),
    "space_before_first_field": (400, "white space before the first header field"),
    "obs_fold": (400, "a header field is folded over lines"),
    "no_colon": (400, "a header line has no colon"),
    "empty_name": (400, "a header field has no name"),
    "space_before_colon": (400, "white space between a header name and its colon"),
    "bad_name": (400, "a header name holds a character that is not allowed"),
    "shadow_name": (400, "a header name with '_' shadows a known field"),
    "bad_value": (400, "a header value holds a control character"),
    "duplicate_field": (400, "a field that may occur once occurs twice"),
    "bad_connection": (400, "the Connection field is not a list of tokens"),
    "unknown_expectation": (417, "only Expect: 100-continue is understood"),
    # host
    "host_missing": (400, "there is no Host field"),
    "duplicate_host": (400, "there is more than one Host field"),
    "bad_host": (400, "the host is not a name or address with an optional port"),
    # framing
    "bad_content_length": (400, "Content-Length is not a number in range"),
    "duplicate_content_length": (400, "Content-Length occurs more than once"),
    "length_and_coding": (400, "Content-Length together with Transfer-Encoding"),
    "coding_on_http10": (400, "Transfer-Encoding on HTTP/1.0"),
    "bad_transfer_encoding": (400, "chunked is not the one and last transfer coding"),
    "unknown_coding": (501, "the transfer coding is not known"),
    "bad_chunk_size": (400, "a chunk size is not hexadecimal or out of range"),
    "bad_chunk_extension": (400, "a chunk extension is malformed"),
    "chunk_extensions_too_large": (400, "the chunk extensions are too large"),
    "bad_chunk_end": (400, "chunk data is not followed by CRLF"),
    "forbidden_trailer": (400, "a trailer names a field that may not be one"),
    "trailers_too_large": (431, "the trailer section is too large"),
    # WebSocket handshake
    "bad_handshake": (400, "the WebSocket handshake is malformed"),
    "bad_websocket_key": (400, "Sec-WebSocket-Key is not 16 bytes in base64"),
    "bad_websocket_version": (426, "only WebSocket version 13 is spoken here"),
    "forbidden_origin": (403, "this origin may not open a WebSocket"),
    # answers of endpoints
    "bad_status_line": (400, "the status line is malformed"),
    "unasked_101": (400, "protocols were switched without being asked"),
    # found by the gateway rather than by the codecs
    "head_timeout": (408, "the request head did not arrive in time"),
    "body_timeout": (408, "the request body did not arrive in time"),
    "body_too_large": (413, "the request body is too large"),
}


class Malformed(Exception):
    """Bytes that must not be acted on. After it the connection is closed: nothing behind it is parsed.

    `reason` is a key of `REASONS`; `side` says whose bytes they were; `status` is what the client is told (502 when an
    endpoint is to blame); `detail` is a sentence free of the peer's bytes.
    """

    __slots__ = ("detail", "reason", "side", "status")

    def __init__(self, reason: str, side: Literal["client", "endpoint"] = "client") -> None:
        status, detail = REASONS[reason]
        super().__init__(reason)
        self.reason = reason
        self.side = side
        self.status = status if side == "client" else 502
        self.detail = detail
