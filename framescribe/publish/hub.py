"""Uploads an export to a dataset repository of the Hugging Face hub.

The token is the one of the environment (`HF_TOKEN`) or of the cached login (`hf auth login`); it is in no message.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError

from framescribe.errors import FrameScribeError
from framescribe.storage.retries import describe_error, store_errors

_MADE_BY_THE_HUB = frozenset({".gitattributes"})
# Of an upload: the client wraps what a thread raised, and refuses a card whose header the hub refuses.
_UPLOAD_ERRORS = (RuntimeError, ValueError)


class CannotPush(FrameScribeError, RuntimeError):
    """The hub does not take an export."""


@dataclass(frozen=True, slots=True)
class HubTarget:
    """Where an export is uploaded to.

    Attributes:
        repo: `NAMESPACE/NAME` of a dataset repository.
        is_public: whether everybody may see it; a repository that is there already keeps its visibility.
    """

    repo: str
    is_public: bool = False


def prepare_repository(target: HubTarget) -> None:
    """Creates the repository where there is none, and asks whether it may be written.

    Raises:
        CannotPush: the id is not valid, there is no token, the hub refuses, or the repository that is there is public
            and nobody said that it may be.
    """
    if target.repo.count("/") != 1:
        raise CannotPush(f"--push-to-hub {target.repo}: wanted NAMESPACE/NAME, such as my-name/my-dataset")
    if get_token() is None:
        raise CannotPush(
            f"--push-to-hub {target.repo}: found no token of the hub, wanted one that may write there: set HF_TOKEN in "
            "the environment, or log in with `hf auth login`"
        )
    api = HfApi(token=True)
    try:
        api.create_repo(target.repo, repo_type="dataset", private=not target.is_public, exist_ok=True)
        api.auth_check(target.repo, repo_type="dataset", write=True)
        is_private = api.dataset_info(target.repo).private
    except HFValidationError as error:
        raise CannotPush(f"--push-to-hub: {error} Choose another name") from None
    except store_errors() as error:
        raise CannotPush(
            f"--push-to-hub {target.repo}: the hub refused ({_describe(error)}), wanted to write there: check the id, "
            "the network, and that the token of HF_TOKEN or `hf auth login` may write to it"
        ) from None
    if not (is_private or target.is_public):
        raise CannotPush(
            f"--push-to-hub {target.repo}: it is there already and public, wanted a private one: add --public to "
            "upload there all the same, or name another repository"
        )


def upload(target: HubTarget, folder: Path) -> str:
    """Uploads the files of a folder that the repository does not have in the same form, and returns what was done.

    Files that are only in the repository stay there.

    Raises:
        CannotPush: it failed, perhaps in the middle; the message has the command that goes on.
    """
    api, repo = HfApi(token=True), target.repo
    command = f"hf upload {repo} {shlex.quote(str(folder))} . --repo-type dataset"
    try:
        before = api.dataset_info(repo).sha
        others = {*api.list_repo_files(repo, repo_type="dataset")} - _list_files(folder) - _MADE_BY_THE_HUB
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, repo_type="dataset", commit_message="Upload an export of FrameScribe"
        )
    except store_errors() + _UPLOAD_ERRORS as error:
        raise CannotPush(
            f"cannot upload {folder} to {repo}: {_describe(error)}. The export is complete; this uploads it: {command}"
        ) from None
    place = f"{api.endpoint}/datasets/{repo}"
    done = f"nothing new for {place}" if commit.oid == before else f"uploaded to {place}"
    if not others:
        return done
    return (
        f"{done}\nfiles there that are not of this export: {len(others):,}, for example {min(others)}; "
        f"to delete them: {command} --delete '*'"
    )


def _list_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _describe(error: BaseException) -> str:
    """Returns what the client said on one line, without the token."""
    token = get_token()
    return " ".join(describe_error(error, () if token is None else (token,)).split()).rstrip(".")
