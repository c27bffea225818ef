"""Keeps two writers of one output apart: puts on a condition, and turns at what only one may change at a time."""

from __future__ import annotations

import json
import os
import socket
import sys
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import fsspec
import psutil
from fsspec.implementations.memory import MemoryFileSystem

from framescribe.storage.retries import http_status, store_errors

_S3, _GCS, _AZURE = frozenset({"s3", "s3a"}), frozenset({"gs", "gcs"}), frozenset({"abfs", "az", "abfss"})
_PRECONDITION_FAILED = frozenset({409, 412})
_UNKNOWN_CONDITION = 501
_FIELDS_OF_VERSION = ("size", "mtime", "created", "modified", "last_modified", "LastModified", "updated")
# A turn lasts for a few requests. One that was begun so long ago was left by a process that is dead.
STALE_TURN_S = 600.0

Put = Callable[[fsspec.AbstractFileSystem, str, bytes, str | None], object]
Entry = Mapping[str, Any]  # what fsspec says about a file: each store has its own fields


class ConditionFailed(Exception):
    """An object is not, or no longer, as the writer saw it; nothing was written."""


def object_version(entry: Entry) -> str:
    """Returns what a conditional write compares: an object's generation or ETag, or its inode, time and size."""
    for name in ("generation", "ETag", "etag"):  # GCS has an etag too, but compares generations
        if entry.get(name):
            return str(entry[name])
    if "ino" in entry:  # a local file; its `created` changes with the number of its links
        return f"{entry['ino']} {entry['mtime']} {entry['size']}"
    found = (entry[name] for name in _FIELDS_OF_VERSION if name in entry)
    # Some stores write a time in one way in listings, and in another where one object is asked for.
    return " ".join(str(value.timestamp() if isinstance(value, datetime) else value) for value in found)


def takes_conditions(file_system: fsspec.AbstractFileSystem) -> bool:
    """Returns whether `put_if` is one step on this kind of store; each single server may ignore it all the same."""
    return _choose_put(file_system) is not _put_anyway


def put_if(file_system: fsspec.AbstractFileSystem, path: str, payload: bytes, version: str | None) -> None:
    """Puts an object into a store if it has this version there, or with None if it is absent.

    Stores without such conditions put it in any case: the caller has looked before.

    Raises:
        ConditionFailed: it is not so.
    """
    try:
        _choose_put(file_system)(file_system, path, payload, version)
    except store_errors() as error:
        if isinstance(error, FileExistsError) or http_status(error) in _PRECONDITION_FAILED:
            raise ConditionFailed(path) from None
        if http_status(error) != _UNKNOWN_CONDITION:
            raise
        file_system.pipe_file(path, payload)
    file_system.invalidate_cache(path)


def describe_process(now_s: float) -> str:
    """Returns what a turn's file says about who has the turn: JSON of one line, unlike any other turn's."""
    about = {"process": os.getpid(), "host": socket.gethostname(), "since_s": round(now_s), "turn": uuid.uuid4().hex}
    return json.dumps(about, sort_keys=True)


def name_process(description: str) -> str:
    """Returns the process that a turn's file describes, for a message."""
    about = _read_description(description)
    return f"process {about['process']} on {about['host']}" if about else "another process"


def may_live(description: str, now_s: float) -> bool:
    """Returns whether the process that a turn's file describes can still be at work, as far as can be seen."""
    about = _read_description(description)
    if about is None or now_s - about["since_s"] > STALE_TURN_S:
        return False
    return about["host"] != socket.gethostname() or psutil.pid_exists(about["process"])


def _choose_put(file_system: fsspec.AbstractFileSystem) -> Put:
    if isinstance(file_system, MemoryFileSystem):
        return _put_to_memory
    protocols = {file_system.protocol} if isinstance(file_system.protocol, str) else {*file_system.protocol}
    for kinds, put in ((_S3, _put_to_s3), (_GCS, _put_to_gcs), (_AZURE, _put_to_azure)):
        if protocols & kinds:
            return put
    return _put_anyway


def _put_to_memory(file_system: fsspec.AbstractFileSystem, path: str, payload: bytes, version: str | None) -> None:
    if version is not None and object_version(file_system.info(path)) != version:
        raise ConditionFailed(path)
    file_system.pipe_file(path, payload, mode="create" if version is None else "overwrite")


def _put_to_s3(file_system: fsspec.AbstractFileSystem, path: str, payload: bytes, version: str | None) -> None:
    bucket, key, _ = file_system.split_path(path)
    condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
    file_system.call_s3("put_object", Bucket=bucket, Key=key, Body=payload, **condition)


def _put_to_gcs(file_system: fsspec.AbstractFileSystem, path: str, payload: bytes, version: str | None) -> None:
    bucket, key, _ = file_system.split_path(path)
    address = file_system.base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o"
    # In two parts, as gcsfs does it: an upload of bytes alone, `uploadType=media`, has its condition ignored by servers
    # that stand in for Google's.
    boundary = uuid.uuid4().hex
    about = f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{json.dumps({'name': key})}\r\n--{boundary}\r\n"
    body = f"{about}Content-Type: application/octet-stream\r\n\r\n".encode() + payload + f"\r\n--{boundary}--".encode()
    headers = {"Content-Type": f"multipart/related; boundary={boundary}"}
    condition = {"ifGenerationMatch": version or "0"}  # 0: absent
    file_system.call("POST", address, bucket, uploadType="multipart", headers=headers, data=body, **condition)


def _put_to_azure(file_system: fsspec.AbstractFileSystem, path: str, payload: bytes, version: str | None) -> None:
    conditions = sys.modules["azure.core"].MatchConditions  # loaded by the file system that is given
    same = {} if version is None else {"etag": version, "match_condition": conditions.IfNotModified}
    file_system.pipe_file(path, payload, overwrite=version is not None, **same)


def _put_anyway(file_system: fsspec.AbstractFileSystem, path: str, payload: bytes, _: str | None) -> None:
    file_system.pipe_file(path, payload)


def _read_description(description: str) -> dict[str, Any] | None:  # Any: JSON values
    try:
        about = json.loads(description)
        return about if {"process", "host", "since_s"} <= about.keys() else None
    except (ValueError, AttributeError):
        return None
