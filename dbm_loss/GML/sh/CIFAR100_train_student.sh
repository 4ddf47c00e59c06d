#!/usr/bin/env bash
# DBM-GML on CIFAR-100-LT, imbalance 100, second stage: the ResNet-32 student.
#
# Paths are relative to dbm_loss/GML. The environment may set PYTHON, DATA, OUTPUTS, MARK, TEACHER
# and DBM; DBM= (empty) trains plain GML. Further arguments go to cifar_main.py:
#     ./sh/CIFAR100_train_student.sh --epochs 1 --fake_data 64
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

outputs="${OUTPUTS:-./outputs}"
exec "${PYTHON:-python}" cifar_main.py \
  --workers 8 \
  --dataset cifar100 \
  --data "${DATA:-./data}" \
  --root_path "$outputs" \
  --imb-factor 0.01 \
  --arch resnet32 \
  --arch_t resnet56 \
  --path_t "${TEACHER:-$outputs/cifar100/ce_CIFAR100_imb001_R56_lr0.1_0/moco_ckpt.pth.tar}" \
  --feat_t 64 \
  --mark "${MARK:-CIFAR100_imb001_R32_tR56_k4096_bk2_lr0.1_TL_g1_a1_b1_0}" \
  --batch-size 128 \
  --learning-rate 0.1 \
  --gamma 1.0 \
  --alpha 1.0 \
  --beta 1.0 \
  --epoch-multiplier 1 \
  ${DBM---use_dbm --max_margin 0.1} \
  "$@"
