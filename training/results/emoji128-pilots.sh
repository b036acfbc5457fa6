#!/bin/sh
# Train and compare the pilots of emoji128-ablation.yaml, and keep their table in training/results/emoji128-pilots.
# To be run at the root of the repository; started again, it goes on where it was. Some hours on two CPU cores.
set -eu
runs=runs/emoji128-pilots
models=

pilot() { # NAME OPTIONS of distill
    name=$1
    shift
    spectral-diffusion distill --config training/configs/emoji128-pilots.yaml --run.out "$runs/$name" "$@"
    models="$models $name=$(ls "$runs/$name"/*.safetensors)"
}

outputs="--loss.taps.down false --loss.taps.middle false --loss.taps.up false"

pilot lite                --resampler conv
pilot gating
pilot paper               --loss.spatial 0.1 --loss.frequency 0.1 --loss.taps.weight 1
pilot outputs-5-5         --loss.spatial 5   --loss.frequency 5   $outputs
pilot outputs-20-20       --loss.spatial 20  --loss.frequency 20  $outputs
pilot outputs-batch-8     --loss.spatial 5   --loss.frequency 5   $outputs \
    --run.batch_size 8 --run.steps 2000 --run.lr 4e-3 --run.ema 0.999 --teacher_answers runs/emoji128-answers-8
pilot outputs-guided      --loss.spatial 5   --loss.frequency 5   $outputs --teacher_guidance 2
pilot middle-5-5          --loss.spatial 5   --loss.frequency 5   --loss.taps.weight 1 --loss.taps.down false --loss.taps.up false
pilot all-1-1             --loss.spatial 1   --loss.frequency 1   --loss.taps.weight 1
pilot all-5-5             --loss.spatial 5   --loss.frequency 5   --loss.taps.weight 1
pilot w0.2-5-5            --loss.spatial 5   --loss.frequency 5   --loss.taps.weight 0.2
pilot w0.06-5-5           --loss.spatial 5   --loss.frequency 5
pilot w0.06-1-5           --loss.spatial 1   --loss.frequency 5
pilot w0.06-0-5           --loss.spatial 0   --loss.frequency 5
pilot w0.06-0-5-alpha-0.5 --loss.spatial 0   --loss.frequency 5   --loss.alpha -0.5
pilot w0.06-1-5-teacher   --loss.spatial 1   --loss.frequency 5   --init teacher
pilot w0.06-1-10          --loss.spatial 1   --loss.frequency 10
pilot w0.06-1-10-conv     --loss.spatial 1   --loss.frequency 10 --resampler conv
pilot w0.06-1-10-wide     --loss.spatial 1   --loss.frequency 10 --model_channels 18 --norm_groups 6
pilot w0.06-1-10-teacher  --loss.spatial 1   --loss.frequency 10 --init teacher
pilot w0.06-1-10-teacher-snr    --loss.spatial 1 --loss.frequency 10 --init teacher --loss.min_snr 5
pilot w0.06-1-10-teacher-random --loss.spatial 1 --loss.frequency 10 --init teacher --teacher_answers null \
    --random_conditions.share 1 --random_conditions.decay 5
pilot w0.06-1-20          --loss.spatial 1   --loss.frequency 20
pilot w0.02-1-20          --loss.spatial 1   --loss.frequency 20  --loss.taps.weight 0.02

spectral-diffusion compare $models --data data/emoji128.tar --out "$runs/compare" --count 480 --batch 32 --guidance 1 --cutoff 14 \
    --subgroups smileys-emotion animals-nature food-drink "transport-*"
spectral-diffusion results training/results/emoji128-pilots --of "$runs/compare"
