#!/usr/bin/env bash
# DBM-GML on iNaturalist 2018, first stage: the ResNeXt-101-32x8d teacher, 100 epochs.
#
# INFERRED: this script was announced but never published. Published are the architecture of the
# student (ResNet-50) and its 100 epochs; 8142 classes follow from the data. All else is copied
# from the ImageNet-LT pair: teacher, learning rate, batch, weight decay, augmentation.
#
# Paths are relative to dbm_loss/GML. The environment may set TORCHRUN, NNODES, ENDPOINT, DATA,
# OUTPUTS, MARK and DBM; DBM= (empty) trains plain GML. Further arguments go to main.py:
#     ./sh/iNaturalist_train_teacher.sh --epochs 1 --fake_data 64
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

exec "${TORCHRUN:-torchrun}" \
  --nnodes "${NNODES:-1}" \
  --rdzv_backend=c10d \
  --rdzv_endpoint="${ENDPOINT:-localhost:29500}" \
  main.py \
  --multiprocessing_distributed \
  --workers 16 \
  --dataset inat \
  --num_classes 8142 \
  --arch resnext101_32x8d \
  --data "${DATA:-$HOME/DATA_ROOT/iNaturalist2018/}" \
  --root_path "${OUTPUTS:-./outputs}" \
  --mark "${MARK:-X101_32x8d_randncls_100epochs_lr0.05_ce_1}" \
  --batch_size 128 \
  --learning_rate 0.05 \
  --epochs 100 \
  --aug randcls_randclsstack \
  --normalize true \
  --beta 0.0 \
  --gamma 1.0 \
  ${DBM---use_dbm --max_margin 0.1} \
  "$@"
