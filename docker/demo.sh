#!/bin/sh
# Builds the image, runs the consortium of compose.yaml once from the beginning, and takes it down again.
#
# Exits with the status of the run. The volumes stay until the next call, or until
#   docker compose -p mh-pfedhn-demo -f docker/compose.yaml down --volumes
# The report is in them:
#   docker run --rm -v mh-pfedhn-demo_results:/results --entrypoint cat mh-pfedhn /results/consortium/report.html
set -eu
cd "$(dirname "$0")/.."

if docker compose version >/dev/null 2>&1; then
    compose() { docker compose -p mh-pfedhn-demo -f docker/compose.yaml "$@"; }
elif command -v docker-compose >/dev/null; then
    compose() { docker-compose -p mh-pfedhn-demo -f docker/compose.yaml "$@"; }
else
    echo "demo.sh: neither \`docker compose\` nor \`docker-compose\` is there." >&2
    exit 2
fi

# Of the checkout only this reaches the builder: old ones do not read Dockerfile.dockerignore.
tar -c -f - --exclude=__pycache__ docker/Dockerfile pyproject.toml constraints.txt README.md \
    mh_pfedhn server_app client_app common conf |
    docker build -f docker/Dockerfile -t mh-pfedhn ${TORCH_INDEX:+--build-arg "TORCH_INDEX=$TORCH_INDEX"} -

compose down --volumes
trap 'compose down' EXIT
trap 'exit 130' INT TERM
compose up -d
run=$(compose ps -a -q run)
docker logs --follow "$run" &
status=$(docker wait "$run")
wait
exit "$status"
