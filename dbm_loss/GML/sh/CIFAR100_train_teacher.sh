#!/usr/bin/env bash
# DBM-GML on CIFAR-100-LT, imbalance 100, first stage: the ResNet-56 teacher.
#
# Paths are relative to dbm_loss/GML. The environment may set PYTHON, DATA, OUTPUTS, MARK and DBM;
# DBM= (empty) trains plain GML. Further arguments go to cifar_ce.py:
#     ./sh/CIFAR100_train_teacher.sh --epochs 1 --fake_data 64
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

exec "${PYTHON:-python}" cifar_ce.py \
  --workers 8 \
  --dataset cifar100 \
  --data "${DATA:-./data}" \
  --root_path "${OUTPUTS:-./outputs}" \
  --arch resnet56 \
  --imb-factor 0.01 \
  --batch-size 128 \
  --learning-rate 0.1 \
  --mark "${MARK:-ce_CIFAR100_imb001_R56_lr0.1_0}" \
  --epoch-multiplier 1 \
  ${DBM---use_dbm --max_margin 0.1} \
  "$@"
