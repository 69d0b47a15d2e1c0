#!/bin/bash
# The same command on each of 8 nodes of 8 GPUs; NODE is 0 on the first, whose address HEAD is:
#   NODE=3 HEAD=10.0.0.1 bash examples/cluster/torchrun.sh infinity_2b_ocr_64gpus.yaml
# When a process ends, torchrun starts all of them again, up to three times, and they resume from last.ckpt by themselves.
set -euo pipefail

torchrun --nnodes=8 --nproc-per-node=8 --node-rank="$NODE" --master-addr="$HEAD" --master-port=29500 --max-restarts=3 \
  -m varrl_lightning fit --config "${1:-infinity_2b_ocr_64gpus.yaml}" "${@:2}"
