"""A job for Dataflow: refused at once where something is missing, and else a template that asks for what it needs.

`make test-dataflow` installs Google's packages and a server that stands in for Google Cloud Storage. No job has run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from apache_beam.portability.api import beam_runner_api_pb2

ROOT = Path(__file__).parent.parent
_CLOUD = ("--project=my-project", "--region=us-central1", "--temp_location=gs://bucket/temp")
_IMAGE = "--sdk_container_image=example.org/framescribe:1"
_L4 = "--resource_hint=accelerator=type:nvidia-l4;count:1"
HAS_PACKAGES = find_spec("google") is not None and find_spec("google.cloud") is not None
needs_packages = pytest.mark.skipif(not HAS_PACKAGES, reason="needs apache-beam[gcp]: `make test-dataflow` installs it")


def annotate(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    command = [sys.executable, "run_pipeline.py", "annotate", "--runner=DataflowRunner", "--num-frames=8", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})


def last_line(*flags: str, **environment: str) -> str:
    done = annotate(*flags, **environment)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def describe_here(folder: Path, *flags: str) -> str:
    """Starts with the demo model and clips of this machine; nothing is ever submitted."""
    places = ("--input=demo/clips", "--model=demo/checkpoint", f"--output={folder}/out")
    return last_line(*places, *_CLOUD, *flags)


@pytest.mark.skipif(HAS_PACKAGES, reason="Google's packages are installed")
def test_without_googles_packages_the_extra_is_named(tmp_path):
    assert "pip install 'framescribe[gcp]'" in describe_here(tmp_path, _IMAGE, _L4)


@needs_packages
def test_a_folder_of_this_machine_is_refused(tmp_path):
    assert "do not see 'demo/clips' of this machine" in describe_here(tmp_path, _IMAGE, _L4)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A server with the demo model and clips in it, and the flags that read and write there."""
    if not HAS_PACKAGES:
        pytest.skip("needs apache-beam[gcp]: `make test-dataflow` installs it")
    from tests.test_real_stores import start_gcs

    server, bucket = start_gcs(tmp_path_factory.mktemp("gcs"))
    files = bucket.open("").file_system
    for folder, name in ((ROOT / "demo/checkpoint", "model"), (ROOT / "demo/clips", "clips")):
        for path in folder.iterdir():
            files.pipe_file(f"bucket/{name}/{path.name}", path.read_bytes())
    yield bucket
    server.terminate()
    server.wait()


def flags_of(bucket, output: str) -> list[str]:
    places = ["--input", "gs://bucket/clips/*.mp4", "--model", "gs://bucket/model", "--output", f"gs://bucket/{output}"]
    return [*places, "--storage-options", json.dumps(bucket.options), *_CLOUD, "--no_auth"]


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ((_L4,), "build docker/Dockerfile, push it, and give --sdk_container_image IMAGE"),
        ((_IMAGE,), "no GPU is asked for: give --resource_hint 'accelerator=type:nvidia-l4;count:1"),
        ((_IMAGE, "--resource_hint=accelerator=type:nvidia-l4;count:4"), "one worker runs one engine on one GPU"),
    ],
    ids=["image", "gpu", "four gpus"],
)
def test_what_a_job_lacks_is_one_line(bucket, flags, wanted):
    assert wanted in last_line(*flags_of(bucket, "refused"), *flags)


def test_missing_credentials_are_one_line(bucket):
    flags = [flag for flag in flags_of(bucket, "refused") if flag != "--no_auth"]
    line = last_line(*flags, _IMAGE, _L4, NO_GCE_CHECK="true", HOME="/nonexistent", CLOUDSDK_CONFIG="/nonexistent")
    assert "gcloud auth application-default login" in line


@pytest.fixture(scope="module")
def template(bucket):
    """The template of a job over the demo clips, and the pipeline that it names."""
    address = next(iter(bucket.options.values()))["endpoint_url"]
    flags = (*flags_of(bucket, "annotated"), _IMAGE, _L4, "--template_location=gs://bucket/template.json")
    done = annotate(*flags, STORAGE_EMULATOR_HOST=address)
    assert done.returncode == 0, done.stderr
    assert "the template is in gs://bucket/template.json" in done.stderr.splitlines()[-1]
    files = bucket.open("").file_system
    (pipeline,) = [path for path in files.find("bucket/temp") if path.endswith("pipeline.pb")]
    described = beam_runner_api_pb2.Pipeline.FromString(files.cat_file(pipeline))
    return json.loads(files.cat_file("bucket/template.json")), described


def test_a_template_asks_for_image_disk_threads_and_one_process(template):
    environment = template[0]["environment"]
    (pool,) = [pool for pool in environment["workerPools"] if pool["kind"] == "harness"]
    assert pool["diskSizeGb"] == 100
    assert pool["sdkHarnessContainerImages"][0]["containerImage"] == "example.org/framescribe:1"
    assert "no_use_multiple_sdk_containers" in environment["experiments"]
    assert pool["numThreadsPerWorker"] == 4


def test_every_step_asks_for_the_gpu_with_its_driver_so_that_one_environment_serves_all(template):
    used = {step.environment_id for step in template[1].components.transforms.values() if step.environment_id}
    hints = [dict(template[1].components.environments[name].resource_hints) for name in used]
    wanted = {"beam:resources:accelerator:v1": b"type:nvidia-l4;count:1;install-nvidia-driver"}
    assert hints == [wanted]


def test_a_template_holds_no_clip_and_no_secret(template):
    assert len(template[1].SerializeToString()) < 100_000
    assert b"01_left" not in template[1].SerializeToString()


def test_the_flex_template_names_flags_that_there_are():
    described = json.loads((ROOT / "deploy/dataflow/flex_template.json").read_text())
    flags = (ROOT / "docs/flags.md").read_text()
    ours = [one["name"] for one in described["parameters"] if one["name"] != "resource_hint"]
    assert all(f"`--{name}" in flags for name in ours)
    assert {"input", "output"} == {one["name"] for one in described["parameters"] if not one.get("isOptional")}
