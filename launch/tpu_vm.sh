#!/bin/bash
# Trains on a Cloud TPU VM: on one host, or on all hosts of a pod slice. Run it in a clone of gadjax.
#
#     launch/tpu_vm.sh create     makes the TPU
#     launch/tpu_vm.sh install    installs gadjax and mounts the share, on all hosts
#     launch/tpu_vm.sh start      starts the run on all hosts, or continues it
#     launch/tpu_vm.sh follow     prints the log as it grows
#     launch/tpu_vm.sh stop       lets the step end, saves it, and stops the run
#     launch/tpu_vm.sh resume     after a preemption: delete, create, install and start
#     launch/tpu_vm.sh fetch      copies the export into this folder
#     launch/tpu_vm.sh delete     deletes the TPU; the share keeps the run
#
# docs/launch.md says more.
set -euo pipefail

# Change these lines. The share is NFS, such as Filestore's, in the TPU's network. It holds the run and its data.
name=gadjax
zone=us-east5-b
accelerator=v6e-8
version=v2-alpha-tpuv6e
share=10.0.0.2:/share
config=qwen7b
flags=(
    --config.student=Qwen/Qwen2.5-7B-Instruct
    --config.data.train=/mnt/gadjax/teacher.parquet
    --config.data.heldout=/mnt/gadjax/heldout.parquet
)
queued=no     # yes: ask for the TPU as a queued resource, and wait for it
terms=--spot  # may be preempted; --reserved or an empty line: may not

mounted=/mnt/gadjax
workdir=$mounted/$name
tpu=(gcloud compute tpus tpu-vm)
queue=(gcloud compute tpus queued-resources)

on() { # HOSTS COMMAND
    "${tpu[@]}" ssh "$name" --zone="$zone" --worker="$1" --command="$2"
}

create() {
    local size=(--zone="$zone" --accelerator-type="$accelerator" ${terms:+"$terms"})
    if [[ $queued != yes ]]; then
        "${tpu[@]}" create "$name" "${size[@]}" --version="$version"
        return
    fi
    "${queue[@]}" create "$name" "${size[@]}" --runtime-version="$version" --node-id="$name"
    local state=
    until [[ $state == ACTIVE ]]; do
        state=$("${queue[@]}" describe "$name" --zone="$zone" --format="value(state.state)")
        echo "$(date +%T) the queued resource is $state"
        case $state in
        ACTIVE) ;;
        FAILED | SUSPENDED) exit 1 ;;
        *) sleep "${POLL_SECONDS:-60}" ;;
        esac
    done
}

delete() {
    if [[ $queued == yes ]]; then
        "${queue[@]}" delete "$name" --zone="$zone" --force --quiet
    else
        "${tpu[@]}" delete "$name" --zone="$zone" --quiet
    fi
}

# The images of TPU VMs have Python 3.10. uv brings a newer one.
install() {
    rm -rf dist
    python3 -m pip wheel --quiet --no-deps --wheel-dir=dist .
    "${tpu[@]}" scp dist/gadjax-*.whl "$name:" --zone="$zone" --worker=all
    on all "set -e
        if ! mountpoint -q $mounted; then
            sudo apt-get install -y -qq nfs-common
            sudo mkdir -p $mounted
            sudo mount -t nfs $share $mounted
        fi
        sudo mkdir -p $workdir
        sudo chown \$(id -u) $workdir
        python3 -m pip install --quiet --user uv
        test -d ~/gadjax-env || ~/.local/bin/uv venv --quiet --python=3.12 ~/gadjax-env
        wheel=\$(ls -t ~/gadjax-*.whl | head -n 1)
        ~/.local/bin/uv pip install --quiet --python ~/gadjax-env/bin/python --reinstall-package=gadjax \"\$wheel[tpu]\""
}

start() {
    local command
    command=$(printf '%q ' -m gadjax.train --config="$config" --workdir="$workdir" "${flags[@]}" "$@")
    on all "nohup ~/gadjax-env/bin/python $command >> ~/gadjax.log 2>&1 < /dev/null & echo \$! > ~/gadjax.pid"
}

case ${1:-} in
create) create ;;
install) install ;;
start) start "${@:2}" ;;
follow) on 0 "tail -n +1 -F ~/gadjax.log" ;;
stop) on 0 "kill -TERM \$(cat ~/gadjax.pid)" ;; # this host tells the others
resume)
    delete
    create
    install
    start "${@:2}"
    ;;
fetch) "${tpu[@]}" scp --recurse "$name:$workdir/export" . --zone="$zone" --worker=0 ;;
delete) delete ;;
*)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
