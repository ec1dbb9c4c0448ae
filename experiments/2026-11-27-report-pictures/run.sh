#!/bin/sh
# Pictures of pages: run.sh OUT PAGE.html...
# Needs chromium, imagemagick and poppler-utils. For each page OUT/NAME_{phone,desktop,dark}.png and OUT/NAME_print-N.png, one for each sheet of paper.
set -eu
out=$1
shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT

# A picture is as tall as the window: taller than any page, then cut off below it.
tall=7000
chrome() {
    chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$profile" "$@" \
        2>"$profile/log" || { cat "$profile/log" >&2; exit 1; }
}
cut() {
    end=$(convert "$1" -trim -format '%[fx:page.y+h]' info:)
    convert "$1" -crop "0x$((end + 40))+0+0" +repage "$1"
}

for page; do
    path=$(realpath "$page")
    name=$(basename "$page" .html)
    # Each run writes a `report.html`.
    [ "$name" != report ] || name=$(basename "$(dirname "$path")")
    # Chromium opens no window as narrow as a phone: a frame is.
    printf '<!DOCTYPE html><style>body{margin:0}iframe{border:0;width:390px;height:%spx}</style>
        <iframe src="file://%s"></iframe>' $tall "$path" >"$profile/phone.html"
    chrome --window-size=500,$tall --screenshot="$out/${name}_phone.png" "file://$profile/phone.html"
    convert "$out/${name}_phone.png" -crop 390x+0+0 +repage "$out/${name}_phone.png"
    chrome --window-size=1200,$tall --screenshot="$out/${name}_desktop.png" "file://$path"
    chrome --window-size=1200,$tall --blink-settings=preferredColorScheme=0 \
        --screenshot="$out/${name}_dark.png" "file://$path"
    for kind in phone desktop dark; do cut "$out/${name}_$kind.png"; done
    chrome --no-pdf-header-footer --print-to-pdf="$profile/print.pdf" "file://$path"
    pdftoppm -r 80 -png "$profile/print.pdf" "$out/${name}_print"
done
