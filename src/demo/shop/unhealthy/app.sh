#!/bin/sh
# The shop. A host runs this for every request and answers with what it prints, or with 503 if it fails.
set -eu
price=250 # cents
echo "Croissant $((price / 100)).$((price % 100)) $SHOP_CURRENCY, fresh from $HOST_NAME"
