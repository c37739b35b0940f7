"""Writing to the Hugging Face hub: only what a user asks to push, with the token of the hub's own login."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ponder.errors import MissingExtra, PonderError, UserError

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LOGIN = "log in first with `hf auth login`, or set HF_TOKEN"


def check(repository: str) -> str:
    """The name of the user who is logged in, before anything is made for a push.

    Raises `UserError` for a name that is no OWNER/NAME, without a login and without network; `MissingExtra`.
    """
    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"--push {repository}: give OWNER/NAME, the model's name on the hub")
    hub = _hub()
    if hub.get_token() is None:
        raise UserError(f"--push {repository}: no login to the hub: {LOGIN}")
    with _sentences(repository):
        return str(hub.HfApi().whoami()["name"])


def push(folder: Path, repository: str) -> str:
    """Upload the files of a folder to a model repository of the hub; returns its address.

    A repository that does not exist is made, private. Raises `PonderError` with one sentence if the hub refuses or
    cannot be reached.
    """
    with _sentences(repository):
        api = _hub().HfApi()
        url = str(api.create_repo(repository, repo_type="model", private=True, exist_ok=True))
        api.upload_folder(
            repo_id=repository, folder_path=str(folder), repo_type="model", commit_message="Exported by ponder"
        )
    return url


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtra("a push to the hub", "hf") from None
    return huggingface_hub


@contextlib.contextmanager
def _sentences(repository: str) -> Iterator[None]:
    """What the library and its transport raise, of many types, as one sentence."""
    try:
        yield
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if status == 401 or type(error).__name__ == "LocalTokenNotFoundError":
            said = f"the hub does not accept the login: {LOGIN}"
        elif status in (403, 404):
            said = f"the login may not write there: use a token with write access, or a name of your own ({reason})"
        elif status is not None:
            said = f"the hub refuses it ({reason})"
        else:
            said = f"the hub could not be reached ({type(error).__name__}: {reason}): check the network"
        raise PonderError(f"--push {repository}: {said}") from None
