"""The keys of `webhooks`: who is told by HTTP of what was changed."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, PlainValidator

from unjam.config.quantities import BadValue
from unjam.config.types import Kind, Model, one_of, one_or_list, text

EVENTS = ("breaker", "rollout", "weight", "drain")
#: Characters of a secret, at least.
LEAST_SECRET = 16


def _url(value: object) -> str:
    return hook_url(value, "https://hooks.example.com/unjam")


def hook_url(value: object, such_as: str) -> str:
    """An http or https URL with any path and query. Never echoed: many carry a secret."""
    plain = text(value)
    fix = f"Write one such as {such_as}."
    try:
        parts = urlsplit(plain)
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")  # as it will be when it is looked up; Unicode's errors are ValueErrors
    except ValueError:
        raise BadValue("is not a URL", fix) from None
    if parts.scheme not in ("http", "https") or not host:
        raise BadValue("is not an http or https URL", fix)
    if not plain.isascii() or not plain.isprintable() or " " in plain:
        raise BadValue("has white space, or characters that a URL may not have", "Escape them as %XX.")
    if parts.username is not None or parts.fragment:
        raise BadValue("has credentials or a fragment", "Write a URL without them.")
    return plain


def _secret(value: object) -> str:
    plain = text(value)
    if len(plain) < LEAST_SECRET:
        fix = f"Use at least {LEAST_SECRET} characters, best from the environment: secret: ${{HOOK_SECRET}}."
        raise BadValue("the secret is too short", fix)
    return plain


class Webhook(Model):
    """One receiver. A URL is short for `{url: ...}`."""

    url: Annotated[str, PlainValidator(_url), Kind("URL")] = Field(
        description="Where events are POSTed as JSON. Of https the certificate is verified.", repr=False
    )
    events: Annotated[
        tuple[Annotated[str, one_of(*EVENTS), Kind("event")], ...],
        BeforeValidator(one_or_list),
    ] = Field(EVENTS, description="What it is told of.")
    secret: Annotated[str, PlainValidator(_secret), Kind("text")] | None = Field(
        None, description="Signs each body, in `x-unjam-signature`.", repr=False
    )

    @property
    def shown(self) -> str:
        """For logs: without the path, which may be a secret."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def in_the_open(self) -> bool:
        return in_the_open(self.url)


def in_the_open(url: str) -> bool:
    """What is sent there crosses a network without TLS, as far as can be told."""
    from unjam.config.address import is_loopback

    parts = urlsplit(url)
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")
