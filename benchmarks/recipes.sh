#!/bin/sh
# Every preset on tiny-wan and on its outlier twin, beside bf16 from the same noise: the tables in benchmarks/recipes.
# An hour on two CPU cores; a run that was stopped goes on where it was.
#
#     sh benchmarks/recipes.sh [PROMPTS [PROCESSES]]      held-out prompts of the tables of all presets, 8 by default
#     python scripts/evaluate.py --recipes w4a8,svdquant-w4a8 --held-out 128 --output benchmarks/recipes/tiny-wan-w4a8 \
#         --calibrate-prompts benchmarks/recipes/calibration.txt
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
recipes=w8a8,w4a16,w4a8,w4a4,minmax-w4a4,smoothquant-w4a4,quarot-w4a4,viditq-w4a8,svdquant-w4a4,svdquant-w4a8,int4-w4a4,dvd-w4a4,dvd-w4a8
twin=outputs/tiny-wan-twin

evaluate() {
    "$python" scripts/evaluate.py --model "$1" --recipes "$recipes" --held-out "$3" --output "benchmarks/recipes/$2" \
        --calibrate-prompts benchmarks/recipes/calibration.txt --processes "$4"
}

[ -e "$twin/model_index.json" ] || "$python" scripts/outlier_twin.py --output "$twin"
evaluate assets/tiny-wan tiny-wan "${1:-8}" "${2:-1}"
evaluate "$twin" tiny-wan-twin "${1:-8}" "${2:-1}"
