#!/usr/bin/env bash
# DBM-GML on ImageNet-LT, second stage: the ResNeXt-50 student, 90 epochs.
#
# Paths are relative to dbm_loss/GML. The environment may set TORCHRUN, NNODES, ENDPOINT, DATA,
# OUTPUTS, MARK, TEACHER and DBM; DBM= (empty) trains plain GML. Further arguments go to main.py:
#     ./sh/ImageNetLT_train_student.sh --epochs 1 --fake_data 64
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

outputs="${OUTPUTS:-./outputs}"
exec "${TORCHRUN:-torchrun}" \
  --nnodes "${NNODES:-1}" \
  --rdzv_backend=c10d \
  --rdzv_endpoint="${ENDPOINT:-localhost:29500}" \
  main.py \
  --multiprocessing_distributed \
  --workers 16 \
  --dataset imagenet \
  --arch resnext50_32x4d \
  --arch_t resnext101_32x8d \
  --path_t "${TEACHER:-$outputs/imagenet/X101_32x8d_randncls_90epochs_lr0.1_ce_1/moco_ckpt.pth.tar}" \
  --feat_t 2048 \
  --data "${DATA:-$HOME/DATA_ROOT/IMAGENET-1K/imagenet/}" \
  --root_path "$outputs" \
  --mark "${MARK:-X50_k16384_bk3_lr0.05_g1.0_b1.0_tX101_1}" \
  --batch_size 128 \
  --learning_rate 0.05 \
  --epochs 90 \
  --aug randcls_randclsstack \
  --normalize true \
  --moco_t 0.07 \
  --moco_k 16384 \
  --base_k 3 \
  --beta 1.0 \
  --gamma 1.0 \
  ${DBM---use_dbm --max_margin 0.1} \
  "$@"
