#!/bin/sh
# Installs Chromium for the tests of the page, where it is missing and this user may install it.
# Waits up to ten minutes for a package manager that is busy, as it often is in the first minutes
# of a machine. Ends with 0 in any case: without Chromium these tests are skipped, and in CI fail.

wait_seconds=600

command -v chromium >/dev/null && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "no chromium, and no right to install it: the tests of the page will be skipped"
  exit 0
fi

# apt-get waits by itself for dpkg's lock, but not for the lock on its lists of packages.
end=$(($(date +%s) + wait_seconds))
faults=0
until output=$(apt-get update -qq -o DPkg::Lock::Timeout=$wait_seconds 2>&1); do
  echo "apt-get update failed: $output"
  case $output in
    *lock*) ;;
    *) faults=$((faults + 1)) ;;
  esac
  if [ "$faults" -ge 3 ] || [ "$(date +%s)" -ge "$end" ]; then
    break
  fi
  sleep 10
done
apt-get install -qq -y -o DPkg::Lock::Timeout=$wait_seconds --no-install-recommends chromium \
  >/dev/null || echo "chromium could not be installed: the tests of the page will be skipped"
