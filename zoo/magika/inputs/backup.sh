#!/bin/sh
# Keep one archive of the measurements for each day of the week.
set -eu

source_dir="${1:-/var/lib/weather}"
target_dir="${2:-/var/backups/weather}"
day="$(date +%a)"

mkdir -p "$target_dir"
tar -czf "$target_dir/weather-$day.tar.gz" -C "$source_dir" .
for file in "$target_dir"/*.tar.gz; do
    echo "$(du -h "$file" | cut -f1) $file"
done
