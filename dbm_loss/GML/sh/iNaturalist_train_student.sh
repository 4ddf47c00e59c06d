#!/usr/bin/env bash
# DBM-GML on iNaturalist 2018, second stage: the ResNet-50 student, 100 epochs.
#
# INFERRED: this script was announced but never published. Published are the architecture of the
# student (ResNet-50) and its 100 epochs; 8142 classes with 3 entries each need a queue of at least
# 24426, and 65536 is the choice of this repository. All else is copied from the ImageNet-LT pair:
# teacher, learning rate, batch, weight decay, augmentation.
#
# Paths are relative to dbm_loss/GML. The environment may set TORCHRUN, NNODES, ENDPOINT, DATA,
# OUTPUTS, MARK, TEACHER and DBM; DBM= (empty) trains plain GML. Further arguments go to main.py:
#     ./sh/iNaturalist_train_student.sh --epochs 1 --fake_data 64
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
  --dataset inat \
  --num_classes 8142 \
  --arch resnet50 \
  --arch_t resnext101_32x8d \
  --path_t "${TEACHER:-$outputs/inat/X101_32x8d_randncls_100epochs_lr0.05_ce_1/moco_ckpt.pth.tar}" \
  --feat_t 2048 \
  --data "${DATA:-$HOME/DATA_ROOT/iNaturalist2018/}" \
  --root_path "$outputs" \
  --mark "${MARK:-R50_k65536_bk3_lr0.05_g1.0_b1.0_tX101_1}" \
  --batch_size 128 \
  --learning_rate 0.05 \
  --epochs 100 \
  --aug randcls_randclsstack \
  --normalize true \
  --moco_t 0.07 \
  --moco_k 65536 \
  --base_k 3 \
  --beta 1.0 \
  --gamma 1.0 \
  ${DBM---use_dbm --max_margin 0.1} \
  "$@"
