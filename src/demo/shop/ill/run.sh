#!/bin/sh
# The shop's tests. phased runs them for every commit, before any host sees it.
set -eu
cd "$(dirname "$0")/.."
PRICES=$(mktemp -d) HOST_NAME=the-test
export PRICES HOST_NAME

wanted="Croissant 2.50 EUR, fresh from the-test"
got=$(sh ./app.sh)
rm -r "$PRICES"
if [ "$got" != "$wanted" ]; then
  echo "FAIL  the price: wanted '$wanted', got '$got'"
  exit 1
fi
echo "ok    the price"
