#!/usr/bin/env bash
# Run one program on the processes of this node: bash scripts/launch.bash PROGRAM GPUS PORT NPROC flags...
#
# GPUS   device list such as 0,1,2,3, or `cpu`        PORT   rendezvous port, 0 for a free one
# NPROC  processes on this node                       Several nodes: NNODES, NODE_RANK, MASTER_ADDR (and one PORT for all)
# RESTARTS=N in the environment: restart after a crash or a killed process, up to N times; needs --resume.
# Returns 0 done, 2 user error, 3 data error, 4 diverged, 75 interrupted after saving (requeue with --resume).
set -euo pipefail
cd "$(dirname "$0")/.."

usage="usage: bash scripts/<program>.bash GPUS NAME PORT NPROC flags...   (GPUS: 0,1,... or cpu; PORT: 0 picks a free one)"
if [[ $# -lt 4 || ! $3 =~ ^[0-9]+$ || ! $4 =~ ^[1-9][0-9]*$ ]]; then echo "$usage" >&2; exit 2; fi
program=$1 gpus=$2 port=$3 nproc=$4
shift 4

if [[ ${RESTARTS:-0} != 0 && " $* " != *" --resume "* ]]; then
    echo "RESTARTS=$RESTARTS needs --resume: each start would find the run folder in use" >&2; exit 2
fi

python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || command -v python3)}
nnodes=${NNODES:-1}
if [[ $gpus == cpu ]]; then
    export CUDA_VISIBLE_DEVICES=""
    # By default glibc returns large blocks at every free, and each step faults their pages again; keeping them is 1.3x faster.
    export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=67108864
    export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1} # pages of 2 MiB: 1.05x faster in large models
    cores=$(nproc)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / nproc > 0 ? cores / nproc : 1))}
else
    export CUDA_VISIBLE_DEVICES=$gpus
    devices=$(tr ',' '\n' <<<"$gpus" | grep -c .)
    if ((nproc > devices)); then echo "$nproc processes need $nproc GPUs, but GPUS is $gpus" >&2; exit 2; fi
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
fi
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # without it a restart of the processes fails on gloo
CLIP_VL_EXIT_FILE=$(mktemp -u "${TMPDIR:-/tmp}/clip_vl_exit.XXXXXXXX")
export CLIP_VL_EXIT_FILE
trap 'rm -f "$CLIP_VL_EXIT_FILE"' EXIT
export CLIP_VL_LAUNCHER=$$ # the processes end when this script ends, also when it is killed

if ((nnodes == 1 && nproc == 1)); then
    command=("$python" -m "clip_vl.$program" "$@")
else
    torchrun=("$python" -m torch.distributed.run --nproc-per-node "$nproc")
    if ((nnodes > 1)); then
        torchrun+=(--nnodes "$nnodes" --node-rank "${NODE_RANK:?set NODE_RANK}" --master-addr "${MASTER_ADDR:?set MASTER_ADDR}"
            --master-port "$port")
    elif ((port == 0)); then
        torchrun+=(--rdzv-backend c10d --rdzv-endpoint localhost:0)
    elif (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
        echo "port $port is in use on this machine; pass another port, or 0 for a free one" >&2
        exit 2
    else
        torchrun+=(--master-addr 127.0.0.1 --master-port "$port")
    fi
    command=("${torchrun[@]}" -m -- "clip_vl.$program" "$@") # without -- torchrun would read --logs as its own flag
fi

# Signals are sent to the processes: torchrun would kill them after thirty seconds, while they save.
stopped=""
forward() {
    stopped=1
    if ((nnodes * nproc > 1)); then pkill "-$1" -P "$pid" || true; else kill "-$1" "$pid" 2>/dev/null || true; fi
}
for signal in TERM INT HUP USR1; do trap "forward $signal" "$signal"; done
for ((restart = 0; ; restart++)); do
    rm -f "$CLIP_VL_EXIT_FILE"
    "${command[@]}" &
    pid=$! code=0
    wait "$pid" || code=$?
    while kill -0 "$pid" 2>/dev/null; do code=0; wait "$pid" || code=$?; done
    if [[ -s $CLIP_VL_EXIT_FILE ]]; then
        read -r code sentence <"$CLIP_VL_EXIT_FILE"
        if ((nnodes * nproc > 1)); then echo "$program ended with code $code: $sentence" >&2; fi
    fi
    # Restart after a crash or a killed process; not after an error that would recur (2, 3, 4) or a stop (75).
    if [[ -n $stopped ]] || ((code != 1 && code < 128)) || ((restart >= ${RESTARTS:-0})); then exit "$code"; fi
    echo "$program: restart $((restart + 1)) of $RESTARTS after code $code" >&2
done
