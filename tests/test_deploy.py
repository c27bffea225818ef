"""What `deploy/` holds fits together, and is what Kubernetes and Flink's operator take."""

from __future__ import annotations

import os
import re
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.options import parse_command
from tests.support.source_tree import ROOT

FOLDER = ROOT / "deploy" / "flink"
_CRD = "META-INF/fabric8/flinkdeployments.flink.apache.org-v1.yml"
_KUBERNETES = "1.30"


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def client() -> dict[str, Any]:
    return read("annotate.yaml")[0]["spec"]["template"]["spec"]["containers"][0]


def pool() -> dict[str, Any]:
    return read("cluster.yaml")[0]["spec"]["taskManager"]["podTemplate"]["spec"]["containers"][0]


def flags() -> dict[str, str]:
    return dict(flag.removeprefix("--").split("=", 1) for flag in client()["args"])


def test_the_flags_of_the_client_are_flags_of_ours_and_of_beam():
    command = parse_command(["annotate", *client()["args"]])
    assert (command.flags.runner, "--parallelism=4" in command.beam_flags) == ("PortableRunner", True)


def test_the_client_finds_job_server_and_pools_where_they_listen():
    deployment, service = read("job-server.yaml")
    ports = {port["name"]: port["port"] for port in service["spec"]["ports"]}
    name = service["metadata"]["name"]
    assert flags()["job_endpoint"] == f"{name}:{ports['jobs']}"
    assert flags()["artifact_endpoint"] == f"{name}:{ports['artifacts']}"
    assert flags()["environment_config"] == f"localhost:{pool()['ports'][0]['containerPort']}"
    assert f"--service_port={pool()['ports'][0]['containerPort']}" in pool()["command"]
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_client_and_pools_are_of_one_image_and_reach_one_store():
    assert client()["image"] == pool()["image"]
    assert client()["envFrom"] == pool()["envFrom"]


def test_the_job_server_asks_the_service_that_the_operator_makes_for_the_cluster():
    container = read("job-server.yaml")[0]["spec"]["template"]["spec"]["containers"][0]
    assert f"--flink-master={read('cluster.yaml')[0]['metadata']['name']}-rest:8081" in container["args"]


def test_the_job_takes_every_slot_of_the_cluster():
    (cluster,) = read("cluster.yaml")
    slots = int(cluster["spec"]["flinkConfiguration"]["taskmanager.numberOfTaskSlots"])
    assert int(flags()["parallelism"]) == slots * cluster["spec"]["taskManager"]["replicas"]


def test_job_server_and_image_are_of_the_beam_that_is_installed():
    beam = re.search(r"^apache-beam==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert beam is not None
    image = read("job-server.yaml")[0]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image.endswith(f":{beam[1]}")


def closed(schema: Any) -> Any:
    """Returns a schema that takes no fields but those it names, which a server would drop without a word."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(part) for name, part in schema.items()}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    return (
        inner if is_open or not isinstance(schema.get("properties"), dict) else {**inner, "additionalProperties": False}
    )


def test_the_operator_takes_the_cluster():
    jar = Path(os.environ.get("FRAMESCRIBE_FLINK", ""), "flink-kubernetes-operator-api.jar")
    if not jar.is_file() or find_spec("jsonschema") is None:
        pytest.skip("needs the operator's schema: `make test-flink` installs it")
    import jsonschema

    with zipfile.ZipFile(jar) as archive:
        version = yaml.safe_load(archive.read(_CRD))["spec"]["versions"][0]
    (cluster,) = read("cluster.yaml")
    assert cluster["apiVersion"] == f"flink.apache.org/{version['name']}"
    validator = jsonschema.Draft202012Validator(closed(version["schema"]["openAPIV3Schema"]["properties"]["spec"]))
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(cluster["spec"])] == []
    cluster["spec"]["taskManager"]["podTemplate"]["spec"]["containers"][0]["resource"] = {}
    assert len(list(validator.iter_errors(cluster["spec"]))) == 1


@pytest.mark.parametrize("name", ["annotate.yaml", "job-server.yaml"])
def test_kubernetes_takes_job_server_and_client(name):
    if find_spec("kubernetes_validate") is None:
        pytest.skip("needs the schemas of Kubernetes: `make test-flink` installs them")
    import kubernetes_validate

    for one in read(name):
        kubernetes_validate.validate(one, _KUBERNETES, strict=True)
