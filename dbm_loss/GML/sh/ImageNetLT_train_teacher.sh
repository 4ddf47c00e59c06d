#!/usr/bin/env bash
# DBM-GML on ImageNet-LT, first stage: the ResNeXt-101-32x8d teacher, 90 epochs.
#
# The name of the run says lr0.1, as published; the learning rate is 0.05.
#
# Paths are relative to dbm_loss/GML. The environment may set TORCHRUN, NNODES, ENDPOINT, DATA,
# OUTPUTS, MARK and DBM; DBM= (empty) trains plain GML. Further arguments go to main.py:
#     ./sh/ImageNetLT_train_teacher.sh --epochs 1 --fake_data 64
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

exec "${TORCHRUN:-torchrun}" \
  --nnodes "${NNODES:-1}" \
  --rdzv_backend=c10d \
  --rdzv_endpoint="${ENDPOINT:-localhost:29500}" \
  main.py \
  --multiprocessing_distributed \
  --workers 16 \
  --dataset imagenet \
  --arch resnext101_32x8d \
  --data "${DATA:-$HOME/DATA_ROOT/IMAGENET-1K/imagenet/}" \
  --root_path "${OUTPUTS:-./outputs}" \
  --mark "${MARK:-X101_32x8d_randncls_90epochs_lr0.1_ce_1}" \
  --batch_size 128 \
  --learning_rate 0.05 \
  --epochs 90 \
  --aug randcls_randclsstack \
  --normalize true \
  --beta 0.0 \
  --gamma 1.0 \
  ${DBM---use_dbm --max_margin 0.1} \
  "$@"
