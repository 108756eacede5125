#!/usr/bin/env bash
# What the tests and the demo need beside Python packages, installed where it is missing (Debian and Ubuntu).
# Usage: system_packages.sh COMMAND[=PACKAGE] ...
set -euo pipefail

missing=()
for want in "$@"; do
  command -v "${want%%=*}" >/dev/null 2>&1 || missing+=("${want#*=}")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
  echo "Missing: ${missing[*]}. Install them with your system's package manager and run this again." >&2
  exit 1
fi
sudo=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null 2>&1 || { echo "Missing: ${missing[*]}. Run as root: apt-get install ${missing[*]}" >&2; exit 1; }
  sudo=(sudo)
fi
echo "Installing ${missing[*]}"
"${sudo[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
