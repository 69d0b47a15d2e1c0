#!/usr/bin/env bash
# A client of the reward service in curl and base64: one PNG file and a prompt in, the answer out.
#   examples/reward_service/client.sh http://127.0.0.1:8000 picture.png 'HELLO on a sign'
# VARRL_API_KEY is sent when it is set. The prompt must not hold double quotes or backslashes: a shell knows no JSON.
set -euo pipefail
url=$1 picture=$2 prompt=$3
printf '{"images": ["%s"], "prompts": [{"text": "%s"}]}' "$(base64 < "$picture" | tr -d '\n')" "$prompt" |
  curl --silent --show-error "$url/predict" --header 'Content-Type: application/json' --header "X-API-Key: ${VARRL_API_KEY:-}" --data-binary @-
echo
