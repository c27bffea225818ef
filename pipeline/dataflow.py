"""What a job on Dataflow needs that Beam does not set by itself, and what it lacks, said before it is submitted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from framescribe.errors import FrameScribeError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

# Bundles of one worker share its one engine; a few threads keep clips coming while one of them commits a part.
_HARNESS_THREADS = 4
# The image with PyTorch has about 10 GB, the weights of the 7B 16 GB, and both are unpacked beside the download.
_DISK_GB = 100
# Beam starts one SDK process per core; each would load the model.
_ONE_PROCESS = "no_use_multiple_sdk_containers"
_DRIVER = "install-nvidia-driver"
_EXAMPLE = f"type:nvidia-l4;count:1;{_DRIVER}"
_HINT, _SERVICE_OPTION = "accelerator=", "worker_accelerator="


class CannotRunOnDataflow(FrameScribeError, ValueError):
    """Something is missing that a job on Dataflow needs; the message says what to give."""


def is_dataflow(runner: str) -> bool:
    """Whether a name of a runner means Dataflow's."""
    return "dataflow" in runner.lower()


def set_defaults(options: PipelineOptions) -> None:
    """Sets, where the user did not, one SDK process per worker, its threads, the disk, and the driver of a GPU."""
    from apache_beam.options.pipeline_options import (
        DebugOptions,
        GoogleCloudOptions,
        SetupOptions,
        StandardOptions,
        WorkerOptions,
    )

    debug, worker, setup = (options.view_as(view) for view in (DebugOptions, WorkerOptions, SetupOptions))
    debug.add_experiment(_ONE_PROCESS)
    debug.number_of_worker_harness_threads = debug.number_of_worker_harness_threads or _HARNESS_THREADS
    worker.disk_size_gb = worker.disk_size_gb or _DISK_GB
    if setup.sdk_location == "default":
        setup.sdk_location = "container"  # the image holds Beam and this package; nothing is staged
    for holder, name, prefix in (
        (options.view_as(StandardOptions), "resource_hints", _HINT),
        (options.view_as(GoogleCloudOptions), "dataflow_service_options", _SERVICE_OPTION),
    ):
        given = [_with_driver(text) if text.startswith(prefix) else text for text in getattr(holder, name) or ()]
        setattr(holder, name, given or None)


def _with_driver(accelerator: str) -> str:
    return accelerator if _DRIVER in accelerator else f"{accelerator};{_DRIVER}"


def check_dataflow(options: PipelineOptions, device: str, local_places: Sequence[str]) -> None:
    """Checks what Dataflow, or a worker there, would miss after minutes.

    Args:
        options: Beam's, with the defaults above.
        device: of the engine; only `cpu` needs no GPU.
        local_places: inputs, output and model that lie on this machine.

    Raises:
        CannotRunOnDataflow: Google's packages, credentials, an image, a GPU, or places that workers can reach.
    """
    from apache_beam.options.pipeline_options import GoogleCloudOptions, StandardOptions, WorkerOptions

    _check_packages()
    cloud, hints = options.view_as(GoogleCloudOptions), options.view_as(StandardOptions).resource_hints or ()
    services = cloud.dataflow_service_options or ()
    if local_places:
        raise CannotRunOnDataflow(
            f"workers on Dataflow do not see {local_places[0]!r} of this machine: bring it to a bucket and give its "
            "gs:// address (a model may also be an id of the Hugging Face hub)"
        )
    if not options.view_as(WorkerOptions).sdk_container_image:
        raise CannotRunOnDataflow(
            "Dataflow needs an image that holds this version of FrameScribe: build docker/Dockerfile, push it, and "
            "give --sdk_container_image IMAGE"
        )
    given = [text for text in (*hints, *services) if text.startswith((_HINT, _SERVICE_OPTION))]
    if not given and device != "cpu":
        raise CannotRunOnDataflow(
            f"no GPU is asked for: give --resource_hint '{_HINT}{_EXAMPLE}', or --device cpu for a model as small as "
            "the demo's"
        )
    for text in given:
        count = re.search(r"count:(\d+)", text)
        if count is None or count[1] != "1":
            raise CannotRunOnDataflow(
                f"{text!r} asks for other than one GPU per worker, and one worker runs one engine on one GPU: give "
                "count:1 and more workers (--max_num_workers)"
            )
    if not cloud.no_auth:
        _check_credentials()


def _check_packages() -> None:
    try:
        is_there = find_spec("google.cloud.dataflow_v1beta3") is not None
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        raise CannotRunOnDataflow("Google's packages are not installed: pip install 'framescribe[gcp]'")


def _check_credentials() -> None:
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        google.auth.default()
    except DefaultCredentialsError:
        raise CannotRunOnDataflow(
            "this machine has no credentials for Google Cloud: run `gcloud auth application-default login`, or let "
            "GOOGLE_APPLICATION_CREDENTIALS name the key file of a service account"
        ) from None
