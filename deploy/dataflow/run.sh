#!/usr/bin/env bash
# Annotates clips of a bucket on Dataflow, one NVIDIA L4 per worker. Fill in the first four lines.
# Not run yet by us on Dataflow: docs/dataflow.md says what was.
set -euo pipefail

project=my-project region=us-central1 bucket=gs://my-bucket
image=us-central1-docker.pkg.dev/my-project/framescribe/framescribe:7b

framescribe annotate \
    --input "$bucket/shards/*.tar" --output "$bucket/annotated" \
    --runner DataflowRunner --project "$project" --region "$region" \
    --temp_location "$bucket/temp" --staging_location "$bucket/staging" \
    --sdk_container_image "$image" \
    --machine_type g2-standard-8 --max_num_workers 8 --disk_size_gb 100 \
    --resource_hint "accelerator=type:nvidia-l4;count:1;install-nvidia-driver" \
    "$@"
