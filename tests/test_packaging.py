"""What pyproject.toml declares is what the source imports, and constraints.txt has one exact version of all of it."""

from __future__ import annotations

import json
import re
import sys
from fnmatch import fnmatch
from hashlib import sha256
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.source_tree import FOLDERS, ROOT, imports, source_modules, top_level_imports_of_tests

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]

PLATFORMS = {
    f"Python {python} on {system} {machine}": {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": system,
        "platform_machine": machine,
    }
    for python in ("3.10", "3.11", "3.12")
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
}
OURS = {*FOLDERS, "run_pipeline", "tests"}
LICENCES_OF_MEDIA = {"Apache-2.0", "BSD-3-Clause", "CC-BY-4.0", "ISC", "MIT", "MPL-2.0"}
INSTALLED = [folder for folder in FOLDERS if folder not in ("benchmarks", "demo")]
DISTRIBUTION_OF_MODULE = {
    "google": "google-auth",
    "grpc": "grpcio",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "tomllib": "tomli",  # in the library from 3.11 on
}

INSTALLED_BY_TARGETS = {"cosmic-ray", "parso", "kubernetes-validate"}  # test-mutants and test-flink, beside .venv


def requirements(*extras: str) -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return [Requirement(line) for line in lines]


def names_for(platform: str, chosen: list[Requirement]) -> list[str]:
    return [
        canonicalize_name(requirement.name)
        for requirement in chosen
        if requirement.marker is None or requirement.marker.evaluate(PLATFORMS[platform])
    ]


def distributions(modules: set[str]) -> set[str]:
    third_party = modules - OURS - set(sys.stdlib_module_names)
    return {canonicalize_name(DISTRIBUTION_OF_MODULE.get(module, module)) for module in third_party}


def shipped(file: Path) -> bool:
    package, *inside = file.relative_to(ROOT).parts
    patterns = SETUPTOOLS["package-data"].get(package, [])
    return any(fnmatch("/".join(inside), pattern) for pattern in patterns)


def test_every_data_file_of_the_source_is_packaged():
    files = (file for folder in INSTALLED for file in (ROOT / folder).rglob("*.*") if "__pycache__" not in file.parts)
    data = [file for file in files if file.is_file() and file.suffix not in {".py", ".md"} and "runs" not in file.parts]
    assert [file for file in data if not shipped(file)] == []


def test_neither_benchmarks_nor_tests_nor_the_demo_are_installed():
    packaged = SETUPTOOLS["packages"]["find"]["include"]
    assert sorted(packaged) == ["framescribe*", "pipeline*", "schemas*", "transforms*"]


def test_every_package_that_the_source_imports_is_declared():
    imported = {name.split(".")[0] for module in source_modules() for name in imports(module)}
    assert distributions(imported) <= {
        canonicalize_name(r.name) for r in requirements("flash", "gcp", "report", "where")
    }


def test_every_package_that_the_tests_import_is_declared():
    imported = distributions(top_level_imports_of_tests()) - INSTALLED_BY_TARGETS
    assert imported <= {canonicalize_name(r.name) for r in requirements("dev", "flash")}


def test_every_constraint_is_an_exact_version():
    assert [str(pin) for pin in PINS if not re.fullmatch(r"==[\w.!+-]+", str(pin.specifier)) or pin.url] == []


@pytest.mark.parametrize("platform", PLATFORMS)
def test_no_package_has_two_versions_on_one_platform(platform):
    names = names_for(platform, PINS)
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_declared_package_has_a_constraint(platform):
    assert set(names_for(platform, requirements("dev", "s3", "gs", "az", "report", "where"))) <= set(
        names_for(platform, PINS)
    )


def test_every_constraint_lies_in_the_declared_range():
    ranges = {
        canonicalize_name(r.name): r.specifier
        for r in requirements("dev", "s3", "gs", "az", "flash", "report", "where")
    }
    versions = [(name, str(pin.specifier)[2:]) for pin in PINS if (name := canonicalize_name(pin.name)) in ranges]
    assert [(name, version) for name, version in versions if version not in ranges[name]] == []


def test_decord_is_asked_for_where_it_has_a_wheel_and_nowhere_else():
    asking = {platform for platform in PLATFORMS if "decord" in names_for(platform, requirements())}
    assert asking == {f"Python {python} on linux x86_64" for python in ("3.10", "3.11", "3.12")}


@pytest.mark.parametrize("folder", ["clips", "broken"])
def test_every_committed_file_of_others_is_the_one_that_the_manifest_names_and_under_a_licence_that_allows_it(folder):
    media = ROOT / "tests" / "media" / folder
    listed = {entry["file"]: entry for entry in map(json.loads, (media / "manifest.jsonl").read_text().splitlines())}
    digests = {
        path.name: sha256(path.read_bytes()).hexdigest() for path in media.iterdir() if path.name != "manifest.jsonl"
    }
    assert digests == {name: entry["sha256"] for name, entry in listed.items()}
    assert {entry["licence"] for entry in listed.values()} <= LICENCES_OF_MEDIA


def test_the_command_framescribe_is_installed():
    commands = {point.name: point.value for point in metadata.entry_points(group="console_scripts")}
    assert commands["framescribe"] == "run_pipeline:main"
