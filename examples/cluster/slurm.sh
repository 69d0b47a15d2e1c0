#!/bin/bash
# 8 nodes of 8 GPUs under SLURM:  sbatch examples/cluster/slurm.sh infinity_2b_ocr_64gpus.yaml
# Before the time runs out SLURM sends USR1: the step is finished, last.ckpt is saved, and the job queues again; started again by
# the same command, it resumes from last.ckpt by itself.
#SBATCH --job-name=varrl
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@300
set -euo pipefail

# One task for each GPU: Lightning reads rank, nodes and the address of the first node from SLURM's variables.
srun varrl fit --config "${1:-infinity_2b_ocr_64gpus.yaml}" "${@:2}"
