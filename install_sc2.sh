#!/usr/bin/env bash
# Installs what --env-config=sc2 needs: StarCraft II 4.10 for Linux, SMAC's maps, and the packages smac and pysc2.
# Each step is skipped where its result is already there, and a download goes on where it stopped.
set -euo pipefail

GAME_URL=${SC2_URL:-https://blzdistsc2-a.akamaihd.net/Linux/SC2.4.10.zip}
MAPS_URL=${SMAC_MAPS_URL:-https://github.com/oxwhirl/smac/releases/download/v0.1-beta1/SMAC_Maps.zip}
LICENSE_URL=https://blzdistsc2-a.akamaihd.net/AI_AND_MACHINE_LEARNING_LICENSE.html
PASSWORD=iagreetotheeula
PYSC2_VERSION=4.0.0
SMAC_COMMIT=d6aab33f76abc3849c50463a8592a84f59a5ef84 # 2024-02-18

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
game=${SC2PATH:-$root/3rdparty/StarCraftII}
python=${PYTHON:-$root/.venv/bin/python}
offline=
accepted=false
packages=true
only_check=false

usage() {
    cat <<EOF
Usage: bash install_sc2.sh [options]

Installs StarCraft II 4.10 for Linux and SMAC's maps into
  $game
and the Python packages smac and pysc2 for
  $python

Options:
  --check           say what is present and what is missing; exit 0 if nothing is missing, else 1
  --offline DIR     take SC2.4.10.zip and SMAC_Maps.zip from DIR instead of downloading them
  --game-only       the game and the maps, no Python packages (these always come through pip)
  --accept-license  agree to Blizzard's AI and Machine Learning License without being asked:
                    $LICENSE_URL
  --help            this text

Environment:
  SC2PATH                 folder of the game, the same as for training
  PYTHON                  the Python to install the packages for
  SC2_URL, SMAC_MAPS_URL  other places to download the two archives from
EOF
}

say() { printf '%s\n' "$*"; }

fail() {
    printf 'install_sc2.sh: %s\n' "$*" >&2
    exit 1
}

need() {
    command -v "$1" >/dev/null || fail "$1 is not installed: try \`sudo apt-get install $1\`, then run this again"
}

has_game() { compgen -G "$game/Versions/Base*/SC2_x64" >/dev/null; }

has_maps() { compgen -G "$game/Maps/SMAC_Maps/*.SC2Map" >/dev/null; }

# Prints a line for each Python package, "present" or "missing" first.
list_packages() {
    "$python" - "$root/requirements-sc2.txt" "pysc2==$PYSC2_VERSION" "$SMAC_COMMIT" <<'EOF'
import sys
from importlib import metadata
from pathlib import Path

requirements, pysc2, commit = sys.argv[1:]
pins = [line.split("#")[0].strip() for line in Path(requirements).read_text().splitlines()]
for pin in [*filter(None, pins), pysc2]:
    name, version = pin.split("==")
    found = next((dist.version for dist in metadata.distributions(name=name)), None)
    note = "" if found in (version, None) else f" (found {found})"
    print("present" if found == version else "missing", f"package {name} {version}{note}")

# AutoML's package of the same name has other files; a copy of another commit has another address.
smac = next(iter(metadata.distributions(name="smac")), None)
source = (smac.read_text("direct_url.json") or "") if smac else ""
note = "" if smac is None or commit in source else f" (found another smac, {smac.version})"
print("present" if commit in source else "missing", f"package smac, commit {commit[:10]}{note}")
EOF
}

# Says what is there. Returns 1 if anything is missing.
check() {
    local lines
    lines=$(
        if has_game; then state=present; else state=missing; fi
        say "$state StarCraft II, $(compgen -G "$game/Versions/Base*/SC2_x64" || say "$game/Versions/Base*/SC2_x64")"
        if has_maps; then state=present; else state=missing; fi
        say "$state SMAC's maps, $game/Maps/SMAC_Maps/*.SC2Map"
        if ! $packages; then
            :
        elif command -v "$python" >/dev/null; then
            list_packages || say "missing Python, $python does not run"
        else
            say "missing Python, $python (\`make setup\` makes it)"
        fi
    )
    say "$lines"
    ! grep -q '^missing' <<<"$lines"
}

accept_license() {
    say "StarCraft II belongs to Blizzard. Its Linux package comes under the AI and Machine Learning License:"
    say "  $LICENSE_URL"
    say "The package opens with the password $PASSWORD: using it means that you agree to this license."
    if $accepted; then
        say "Agreed by --accept-license."
        return
    fi
    [[ -t 0 ]] || fail "nobody is there to agree to the license: read it, then run this again with --accept-license"
    local answer
    read -r -p "Type $PASSWORD to agree: " answer || answer=
    [[ $answer == "$PASSWORD" ]] || fail "you did not agree to the license, so the game was not installed"
}

# Makes sure of an archive, and sets $archive to its path.
get_archive() { # URL NAME
    if [[ -n $offline ]]; then
        archive=$offline/$2
        [[ -f $archive ]] || fail "there is no $2 in $offline: download it from $1 on a machine with a network"
        return
    fi
    archive=$(dirname "$game")/$2
    [[ ! -f $archive ]] || return 0 # only a complete download has this name
    need curl
    say "Downloading $1"
    curl --fail --location --retry 3 --continue-at - --output "$archive.part" "$1" ||
        fail "could not download $1: run this again to go on where it stopped; if it fails again, delete" \
            "$archive.part, or bring $2 from elsewhere and use --offline"
    mv "$archive.part" "$archive"
}

# Unpacks $archive into a new folder $work beside the game, so that moving it into place is one quick step.
unpack_archive() {
    local needed free status=0
    local damaged="$archive is damaged: delete it, get it again, and run this again"
    need unzip
    needed=$(unzip -Zt "$archive" | awk '{ print int($3 / 1024) + 1 }') || fail "$damaged"
    free=$(df -Pk "$(dirname "$game")" | awk 'END { print $4 }')
    ((needed < free)) ||
        fail "$(dirname "$game") has $((free / 1024)) MiB free and needs $((needed / 1024)): make room, or set SC2PATH"
    work=$(mktemp -d "$(dirname "$game")/.unpack.XXXXXX") ||
        fail "cannot write to $(dirname "$game"): choose another folder with SC2PATH"
    trap 'rm -rf "$work"' EXIT
    say "Unpacking $archive"
    unzip -q -o -P "$PASSWORD" "$archive" -d "$work" || status=$?
    ((status <= 1)) || fail "$damaged (unzip ended with $status)" # 1 is only a warning
}

drop_archive() {
    rm -rf "$work"
    [[ -n $offline ]] || rm -f "$archive"
}

install_game() {
    if has_game; then
        say "StarCraft II is already in $game"
        return
    fi
    [[ $(uname -sm) == "Linux x86_64" ]] ||
        fail "the package is for Linux on x86-64, not $(uname -sm): use --env-config=smax there"
    accept_license
    mkdir -p "$(dirname "$game")" || fail "cannot make $(dirname "$game"): choose another folder with SC2PATH"
    get_archive "$GAME_URL" SC2.4.10.zip
    unpack_archive
    local binary unpacked
    binary=$(find "$work" -path '*/Versions/Base*/SC2_x64' -type f -print -quit)
    [[ -n $binary ]] || fail "$archive holds no Versions/Base*/SC2_x64: get it from $GAME_URL"
    chmod +x "$binary"
    unpacked=${binary%/Versions/*}
    if [[ ! -e $game ]] || rmdir "$game" 2>/dev/null; then
        mv "$unpacked" "$game"
    else # something else is there, such as maps: add to it, what has_game looks for last
        mkdir "$work/last"
        mv "$unpacked/Versions" "$work/last/"
        cp -a "$unpacked/." "$game/"
        cp -a "$work/last/." "$game/"
    fi
    drop_archive
}

install_maps() {
    if has_maps; then
        say "SMAC's maps are already in $game/Maps/SMAC_Maps"
        return
    fi
    get_archive "$MAPS_URL" SMAC_Maps.zip
    unpack_archive
    local map
    map=$(find "$work" -name '*.SC2Map' -type f -print -quit)
    [[ -n $map ]] || fail "$archive holds no *.SC2Map: get it from $MAPS_URL"
    mkdir -p "$game/Maps/SMAC_Maps"
    cp -a "$(dirname "$map")"/*.SC2Map "$game/Maps/SMAC_Maps/"
    drop_archive
}

install_packages() {
    command -v "$python" >/dev/null ||
        fail "there is no Python at $python: run \`make setup\`, or name another one with PYTHON=..."
    local lines again="see the message above, then run this again"
    lines=$(list_packages) || fail "$python does not run: $again"
    if ! grep -q '^missing' <<<"$lines"; then
        say "The Python packages are already installed"
        return
    fi
    need git
    local smac="smac @ git+https://github.com/oxwhirl/smac.git@$SMAC_COMMIT"
    "$python" -m pip install -r "$root/requirements-sc2.txt" ||
        fail "pip could not install requirements-sc2.txt: $again"
    # Without dependencies: see requirements-sc2.txt.
    "$python" -m pip install --no-deps "pysc2==$PYSC2_VERSION" || fail "pip could not install pysc2: $again"
    "$python" -m pip install --no-deps "$smac" || fail "pip could not install SMAC from GitHub: $again"
}

while (($#)); do
    case $1 in
        --check) only_check=true ;;
        --offline)
            [[ -d ${2:-} ]] || fail "--offline needs a folder that exists, found '${2:-}'"
            offline=$2
            shift
            ;;
        --game-only) packages=false ;;
        --accept-license) accepted=true ;;
        --help | -h)
            usage
            exit 0
            ;;
        *) fail "unknown option $1: see --help" ;;
    esac
    shift
done

if ! $only_check; then
    install_game
    install_maps
    if $packages; then install_packages; fi
fi
if ! check; then
    $only_check || fail "something is still missing: see above"
    say "Run \`bash install_sc2.sh\` to install what is missing."
    exit 1
fi
