"""The options of every command that asks the admin listener."""

from __future__ import annotations

from typing import Annotated

import typer

from unjam.cli.client import AdminClient
from unjam.cli.trouble import say

AdminUrl = Annotated[
    str, typer.Option("--admin", envvar="UNJAM_ADMIN", help="Address of the admin listener.", metavar="URL")
]
AdminToken = Annotated[
    str | None,
    typer.Option("--token", envvar="UNJAM_ADMIN_TOKEN", help="Admin token.", show_envvar=True, metavar="TOKEN"),
]
LOCAL_ADMIN = "http://127.0.0.1:8081"


def admin_client(url: str, token: str | None) -> AdminClient:
    client = AdminClient(url, token or None)
    if client.bare_token:
        say("warning: the admin token crosses the network without TLS.")
    return client
