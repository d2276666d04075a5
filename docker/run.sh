#!/usr/bin/env bash
# Runs a command in the trainer's image, as PyMARL's run.sh does.
set -euo pipefail

usage() {
    cat <<'END'
Usage: docker/run.sh IMAGE GPU COMMAND...

Runs COMMAND in a container of IMAGE, as yourself: what it writes below ./results is yours.

  IMAGE    such as greed-is-good (docker build -f docker/Dockerfile -t greed-is-good .)
  GPU      0, or 0,2 or all: NVIDIA GPUs (with NVIDIA's container toolkit); none: the CPU
  COMMAND  such as python src/main.py --config=greedy_qmix --env-config=smax with env_args.map_name=3m

Environment:
  RESULTS    the folder that is mounted as the container's results (./results)
  SC2PATH    StarCraft II, mounted read-only
  MONGO_URL, MONGO_URL_FILE
             where the record goes too; it appears in no command line. A server on this machine's loopback is
             reached with DOCKER_ARGS=--network=host
  RUN_AS     user and group as numbers, 1000:1000; needed where root starts this
  DOCKER     the program (docker); podman needs DOCKER_ARGS=--userns=keep-id as well
  DOCKER_ARGS
             more options of `docker run`, such as "--detach --memory=16g"

The container is removed when it ends, its files are read-only but for results and /tmp, and it has no privileges.
`docker stop -t 300 NAME` and Ctrl-C let a run write its checkpoint first; resume=auto goes on.
END
}

fail() {
    printf 'run.sh: %s\n' "$*" >&2
    exit 2
}

case ${1:-} in
    -h | --help)
        usage
        exit 0
        ;;
esac
(($# >= 3)) || fail "needs an image, a GPU (or none) and a command: see --help"
image=$1 gpu=$2
shift 2
docker=${DOCKER:-docker}
command -v "$docker" >/dev/null ||
    fail "$docker is not installed: see https://docs.docker.com/engine/install, or name another one with DOCKER=podman"

options=(--init --read-only --tmpfs "/tmp:exec,mode=1777" --cap-drop ALL --security-opt no-new-privileges --shm-size 1g)
case $gpu in
    none | cpu) options+=(--env NVIDIA_VISIBLE_DEVICES=void) ;;
    all) options+=(--gpus all) ;;
    *)
        [[ $gpu =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "GPU is 0, 0,2, all or none, found '$gpu'"
        options+=(--gpus "\"device=$gpu\"") # docker reads this as CSV, where commas need the quotes
        ;;
esac

user=${RUN_AS:-$(id -u):$(id -g)}
[[ $user =~ ^[0-9]+(:[0-9]+)?$ ]] || fail "RUN_AS is a user and a group as numbers, 1000:1000, found '$user'"
[[ ! $user =~ ^0+(:|$) ]] ||
    fail "this would run as root in the container: start it as another user, or name one with RUN_AS=1000:1000"
options+=(--user "$user")

results=${RESULTS:-$PWD/results}
if [[ ! -d $results ]]; then
    mkdir -p "$results" 2>/dev/null || fail "cannot make $results: name another folder with RESULTS=..."
    if ((EUID == 0)); then chown "$user" "$results"; fi
fi
results=$(cd "$results" && pwd)
# A command that root starts runs as somebody else, who must be able to write there.
writers=(-uid "${user%%:*}" -perm -u+w -o -gid "${user##*:}" -perm -g+w -o -perm -o+w)
if ((EUID == 0)) && [[ -z $(find -H "$results" -maxdepth 0 \( "${writers[@]}" \)) ]]; then
    fail "$user cannot write into $results: chown it, or name another folder with RESULTS=..."
fi
[[ $results != *,* ]] || fail "$results has a comma, which docker does not take: name another folder with RESULTS=..."
options+=(--mount "type=bind,source=$results,target=/app/results")

if [[ -n ${SC2PATH:-} ]]; then
    [[ -d $SC2PATH ]] || fail "SC2PATH=$SC2PATH is no folder: name StarCraft II's, or unset it"
    options+=(--mount "type=bind,source=$(cd "$SC2PATH" && pwd),target=/opt/StarCraftII,readonly")
fi
# By name only: docker takes the values from the environment.
if [[ -n ${MONGO_URL:-} ]]; then options+=(--env MONGO_URL); fi
if [[ -n ${MONGO_URL_FILE:-} ]]; then
    [[ -r $MONGO_URL_FILE ]] || fail "MONGO_URL_FILE=$MONGO_URL_FILE cannot be read: name a file that holds the URL"
    file=$(cd "$(dirname "$MONGO_URL_FILE")" && pwd)/$(basename "$MONGO_URL_FILE")
    options+=(--mount "type=bind,source=$file,target=/run/mongo_url,readonly" --env MONGO_URL_FILE=/run/mongo_url)
fi
if [[ -t 0 && -t 1 ]]; then options+=(--interactive --tty); fi

name=greed-${gpu//,/-}-$(date +%H%M%S)-$$
printf 'Container %s: image %s, GPU %s, results in %s\n' "$name" "$image" "$gpu" "$results" >&2
# shellcheck disable=SC2086  # DOCKER_ARGS holds several options
exec "$docker" run --rm --name "$name" --hostname "$HOSTNAME" "${options[@]}" ${DOCKER_ARGS:-} "$image" "$@"
