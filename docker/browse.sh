#!/usr/bin/env bash
# Starts MongoDB and Omniboard, with a password of its own, and says where they are. `make browse` runs this.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() {
    printf 'browse.sh: %s\n' "$*" >&2
    exit 2
}

command -v docker >/dev/null ||
    fail "docker is not installed: see https://docs.docker.com/engine/install; \`make browse-local\` needs none"
docker compose version >/dev/null 2>&1 ||
    fail "docker's compose plugin is not installed: see https://docs.docker.com/compose/install (docker-compose-plugin)"

if ! grep -q '^MONGO_PASSWORD=..*' .env 2>/dev/null; then
    (
        umask 077
        printf 'MONGO_PASSWORD=%s\n' "$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" >>.env
    )
    chmod 600 .env
    echo "Wrote a password into docker/.env"
fi
docker compose up --detach --wait mongo omniboard || fail "MongoDB or Omniboard does not start: see the message above"
cat <<END

Omniboard      http://127.0.0.1:${OMNIBOARD_PORT:-9000}
MongoDB        127.0.0.1:${MONGO_PORT:-27017}, user greed, password in docker/.env

Runs go there with
    export MONGO_URL="mongodb://greed:\$(sed -n s/^MONGO_PASSWORD=//p docker/.env)@127.0.0.1:${MONGO_PORT:-27017}/greed?authSource=admin"
and what lies in results with python src/sync_runs.py results. docker compose -f docker/compose.yaml down stops both.
END
