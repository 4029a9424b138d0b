#!/bin/sh
# The shop. A host runs this for every request and answers with what it prints, or with 503 if it fails.
# All tills share one cache of prices. Nobody tried what happens once there are two of them.
set -eu
prices=${PRICES:-../../prices}
mkdir -p "$prices"
: >>"$prices/$HOST_NAME"
set -- "$prices"/*
if [ $# -gt 1 ]; then
  printf . >>"$prices/$HOST_NAME"
  if [ "$(wc -c <"$prices/$HOST_NAME")" -gt 6 ]; then
    echo "price cache is corrupt: two tills wrote to it" >&2
    exit 1
  fi
fi
price=250 # cents
echo "Croissant $((price / 100)).$((price % 100)) EUR, fresh from $HOST_NAME"
