"""Operational events (start, reload, ejection, breaker trips): structlog on stderr, JSON or console by terminal.

No value of a field that names a credential is ever printed, nor any secret told to `conceal`, wherever it turns up, a
traceback included (hostile-input 52). What hostile peers cause is bounded: `Rejections` writes so many lines a second
and says how many it left out. Logging never blocks and never raises: lines leave through `sink.Sink`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
import time
from base64 import b64encode
from collections.abc import Callable, MutableMapping
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from unjam.telemetry.escape import printable
from unjam.telemetry.metrics import MAX_REASONS, GatewayStats
from unjam.telemetry.sink import Sink, is_tty

Style = Literal["auto", "json", "console"]
LEVELS = ("debug", "info", "warning", "error")

REDACTED = "[redacted]"

#: A field is never printed when one of these is a word of its name, in snake, kebab or camel case.
_SECRET_WORDS = frozenset(
    [
        "apikey",
        "apikeys",
        "auth",
        "authorization",
        "bearer",
        "cookie",
        "cookies",
        "credential",
        "credentials",
        "key",
        "keys",
        "passphrase",
        "passwd",
        "password",
        "passwords",
        "secret",
        "secrets",
        "signature",
        "token",
        "tokens",
    ]
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WORD = re.compile(r"[^_\-. ]+")
#: Names that only sound like it.
_HARMLESS = frozenset({"config_key", "tokens_per_minute", "tokens_used"})
#: A credential inside a text: an Authorization value, or the user part of a URL.
_SECRET_TEXT = re.compile(
    r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}|(?<=://)[^/\s@\"']+(?=@)|\bsk-[A-Za-z0-9_-]{8,}"
)

#: Shorter texts are not concealed: replacing them would garble every line.
MIN_SECRET = 6
#: Secrets remembered; a reload may bring new ones, and old ones may still be in flight.
MAX_SECRETS = 1024

_concealed: dict[str, None] = {}
_sink: Sink | None = None
_lock = threading.Lock()


def conceal(secret: str) -> None:
    """Never print this text (admin token, provider credential), whatever field, message or traceback it is in, plain
    or in base64. Texts under `MIN_SECRET` characters are ignored; beyond `MAX_SECRETS` the oldest is forgotten."""
    if len(secret) < MIN_SECRET:
        return
    for form in (secret, b64encode(secret.encode("utf-8", "surrogateescape")).decode().rstrip("=")):
        _concealed.pop(form, None)
        _concealed[form] = None
    while len(_concealed) > 2 * MAX_SECRETS:
        del _concealed[next(iter(_concealed))]


def scrub(text: str) -> str:
    """`text` without the concealed secrets and without anything that looks like a credential."""
    for secret in _concealed:
        if secret in text:
            text = text.replace(secret, REDACTED)
    return _SECRET_TEXT.sub(REDACTED, text)


def is_secret_name(name: str) -> bool:
    return name not in _HARMLESS and not _SECRET_WORDS.isdisjoint(_WORD.findall(_CAMEL.sub("_", name).lower()))


def _redacted_field(name: str, value: Any, depth: int = 0) -> Any:
    return REDACTED if value is not None and is_secret_name(name) else _redacted(value, depth)


def _redacted(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        return scrub(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        # JSON has no word for infinity.
        return value if math.isfinite(value) else str(value)
    if depth > 6:
        return "…"
    if isinstance(value, MutableMapping):
        return {scrub(str(name)): _redacted_field(str(name), inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_redacted(inner, depth + 1) for inner in value]
    if isinstance(value, bytes):
        return scrub(value.decode("latin-1"))
    return scrub(str(value))


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """structlog processor; see the module's promise. Runs after tracebacks have become text."""
    for name, value in event.items():
        event[name] = _redacted_field(name, value)
    return event


def _escape(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """For the console, where a value could otherwise drive the terminal. Tracebacks keep their lines."""
    for name, value in event.items():
        if isinstance(value, str):
            if name == "exception":
                event[name] = "\n".join(printable(line) for line in value.split("\n"))
            else:
                event[name] = printable(value, 4096)
        elif isinstance(value, (dict, list)):
            event[name] = printable(repr(value), 4096)
    return event


def _to_json(logger: WrappedLogger, method: str, event: EventDict) -> str:
    line = {"time": event.pop("timestamp", None), "level": event.pop("level", method), "event": event.pop("event", "")}
    # ensure_ascii also escapes DEL, C1 controls, bidirectional marks and lone surrogates.
    return json.dumps({**line, **event}, ensure_ascii=True, default=str, separators=(",", ":"))


class _SinkLogger:
    """What structlog and the standard library's handler write finished lines to."""

    def msg(self, message: str) -> None:
        _emit(message)

    debug = info = warning = error = critical = exception = fatal = log = msg


def _emit(message: str) -> None:
    sink = _sink
    if sink is None:
        return
    # Threads log too; the access log's sink needs no lock, only the loop writes to it.
    with _lock:
        sink.write(message.encode("utf-8", "backslashreplace") + b"\n")


class _Handler(logging.Handler):
    """Sends what libraries log through the standard library (asyncio, uvicorn) the same way, redacted too."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _emit(self.format(record))
        except Exception as error:  # noqa: BLE001  a library's broken log call must not end a request
            _emit(f'{{"level":"error","event":"log_record_broken","why":"{type(error).__name__}"}}')


def setup(level: str = "info", style: Style = "auto", fd: int = 2) -> None:
    """Set up structlog and the standard library's root logger. `level`: one of `LEVELS` (ValueError otherwise).
    May be called again (a reload): later calls replace earlier ones."""
    global _sink
    if level not in LEVELS:
        raise ValueError(f"log level must be one of {', '.join(LEVELS)}, not {printable(level, 40)!r}")
    _sink = Sink(None, fd=fd)
    console = style == "console" or (style == "auto" and is_tty(fd))
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # Plain text on purpose: richer tracebacks print local variables, secrets among them.
        structlog.processors.format_exc_info,
        redact,
    ]
    last: list[Any]
    if console:
        colours = is_tty(fd) and not os.environ.get("NO_COLOR")
        plain = structlog.dev.plain_traceback
        last = [_escape, structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain)]
    else:
        last = [_to_json]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *args: _SinkLogger(),
        cache_logger_on_first_use=False,
    )
    handler = _Handler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, structlog.stdlib.add_log_level, *shared[2:]],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, redact, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    # Libraries are only worth a line when something is wrong.
    root.setLevel(max(logging.WARNING, getattr(logging, level.upper())))


def get(component: str) -> FilteringBoundLogger:
    """A logger whose lines say which part of unjam speaks: `get("gateway").info("reloaded", services=3)`."""
    logger: FilteringBoundLogger = structlog.get_logger(component=component)
    return logger


def flush() -> None:
    """Write what a stalled stderr has left waiting. Called on the gateway's tick."""
    if _sink is not None and _sink.buffered:
        with _lock:
            _sink.flush()


def dropped() -> int:
    """Operational lines lost so far."""
    return _sink.dropped if _sink is not None else 0


def trouble(what: str, clock: Callable[[], float] = time.monotonic, every: float = 60.0) -> Callable[..., None]:
    """An `on_trouble` for a sink: says `<what>_stalled` and `<what>_resumed`, at most one pair in `every` seconds."""
    log = get("telemetry")
    last = -every
    said = False

    def tell(event: str, **fields: object) -> None:
        nonlocal last, said
        if event == "stalled":
            now = clock()
            said = now - last >= every
            if said:
                last = now
                log.warning(f"{what}_stalled", hint="lines that find no room are dropped and counted", **fields)
        elif said:
            log.info(f"{what}_resumed", **fields)

    return tell


class Rejections:
    """Refusals that a hostile peer can cause at will: every one is counted, a bounded number is logged.

    One line has the reason's code and the peer's address, never a raw value. `per_second`: lines, with a burst of as
    many. What was left out is said with the next line, or by `tick` once the flood is over. `clock`: monotonic seconds.
    """

    __slots__ = ("_allowance", "_clock", "_last", "_log", "_per_second", "_stats", "_suppressed")

    def __init__(
        self, stats: GatewayStats, per_second: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stats = stats
        self._per_second = per_second
        self._clock = clock
        self._allowance = per_second
        self._last = clock()
        self._suppressed: dict[str, int] = {}
        self._log = get("gateway")

    def reject(self, reason: str, peer: str) -> None:
        """`reason`: a snake_case code from our own tables. `peer`: the address it came from."""
        self._stats.reject(reason)
        if not self._take():
            if reason in self._suppressed or len(self._suppressed) < MAX_REASONS:
                self._suppressed[reason] = self._suppressed.get(reason, 0) + 1
            return
        suppressed = sum(self._suppressed.values())
        self._suppressed.clear()
        if suppressed:
            self._log.warning("rejected", reason=printable(reason, 64), peer=printable(peer, 64), suppressed=suppressed)
        else:
            self._log.warning("rejected", reason=printable(reason, 64), peer=printable(peer, 64))

    def tick(self) -> None:
        """Say what was left out, once there is room for a line again."""
        if self._suppressed and self._take():
            reasons = dict(self._suppressed)
            self._suppressed.clear()
            self._log.warning("rejections_suppressed", reasons=reasons, suppressed=sum(reasons.values()))

    def _take(self) -> bool:
        now = self._clock()
        self._allowance = min(self._per_second, self._allowance + (now - self._last) * self._per_second)
        self._last = now
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        return True
