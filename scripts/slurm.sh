#!/usr/bin/env bash
#SBATCH --job-name=segtrain
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#
# Trains under Slurm and goes on by itself after the time limit.
#
#   sbatch --nodes=1 --gpus-per-node=4 --time=4:00:00 scripts/slurm.sh experiment=pspnet101_voc
#   RUN=outputs/slurm/7 sbatch ... scripts/slurm.sh -- dataset.root=/new/voc train.workers=8
#
# Five minutes before the limit Slurm sends SIGUSR1 to this script, which passes it to the training; that saves and ends
# with 75 ("interrupted, resumable"), or with 130 if there was nothing to save yet. Then the job is put back into the queue,
# and the next start resumes the same folder, or begins again.
#
# A run that goes on keeps its settings: it is given only what stands behind `--`, which every start is given. That is the
# place for what a resume may change (docs/resume.md) and for --trust.
#
# All starts of one job share the run folder RUN (default: outputs/slurm/<job id>). A task of a job array is its own job.
set -uo pipefail

job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}"
job="${job:-${SLURM_JOB_ID:?start this script with sbatch}}"
run="${RUN:-outputs/slurm/$job}"

first=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    first+=("$1")
    shift
done
[ $# -eq 0 ] || shift # what is left is for every start

if compgen -G "$run/checkpoints/*" >/dev/null; then
    [ ${#first[@]} -eq 0 ] || echo "$run goes on with its own settings, without: ${first[*]}"
    command=(segtrain "resume=$run" "$@")
else
    command=(segtrain "hydra.run.dir=$run" ${first[@]+"${first[@]}"} "$@")
fi

# The trap stands before the training starts: a signal in between would end this script and leave
# the training without one.
training=""
early=0
trap 'signalled=1; if [ -n "$training" ]; then kill -USR1 "$training"; else early=1; fi' USR1 TERM
srun --kill-on-bad-exit=0 "${command[@]}" &
training=$!
[ "$early" -eq 0 ] || kill -USR1 "$training"

# A trapped signal ends `wait` early: wait again until the training is really gone.
signalled=1
while [ "$signalled" -eq 1 ]; do
    signalled=0
    wait "$training"
    code=$?
done

if [ "$code" -eq 75 ] || [ "$code" -eq 130 ]; then
    said="interrupted and saved"
    [ "$code" -eq 75 ] || said="stopped before anything was saved"
    echo "$said: job $job goes back into the queue"
    scontrol requeue "$job" && exit 0
fi
exit "$code"
