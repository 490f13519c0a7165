#!/usr/bin/env bash
# open_clip's own trainer on captions that name what they left out: archives become a CSV, the command line does the rest.
#
#     examples/open_clip.sh artifacts/demo ViT-B-32 --epochs 30 --batch-size 256 --precision amp
#
# The first two arguments are the output folder of a finished curation and any open_clip model; the others go to the trainer.
set -euo pipefail
out=$1 model=$2
shift 2

# "our house" becomes "our house, with tree, grass": up to three concepts that at least two retrieved captions mention.
python -m cocu export "$out" --format csv --omitted --support 2 --top 3

python -m open_clip_train.main --model "$model" \
    --dataset-type csv --train-data "$out/export/csv/train.csv" --csv-img-key filepath --csv-caption-key title \
    --logs "$out/open_clip" --name enriched "$@"
