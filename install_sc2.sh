#!/usr/bin/env bash
# Installs what --env-config=sc2 needs: StarCraft II 4.10 for Linux, SMAC's maps, and the packages smac and pysc2; with
# --smacv2 also SMACv2 and its map. Each step is skipped where its result is already there, and a download goes on where
# it stopped.
set -euo pipefail

GAME_URL=${SC2_URL:-https://blzdistsc2-a.akamaihd.net/Linux/SC2.4.10.zip}
MAPS_URL=${SMAC_MAPS_URL:-https://github.com/oxwhirl/smac/releases/download/v0.1-beta1/SMAC_Maps.zip}
SMACV2_MAPS_URL=${SMACV2_MAPS_URL:-https://github.com/oxwhirl/smacv2/releases/download/maps/SMAC_Maps.zip}
LICENSE_URL=https://blzdistsc2-a.akamaihd.net/AI_AND_MACHINE_LEARNING_LICENSE.html
PASSWORD=iagreetotheeula
PYSC2_VERSION=4.0.0
SMAC_COMMIT=d6aab33f76abc3849c50463a8592a84f59a5ef84   # 2024-02-18
SMACV2_COMMIT=577ab5a2cff2391f8df582da5731ea9cd6adf3c6 # 2024-02-15
SMACV2_MAP=32x32_flat.SC2Map                           # 10gen_terran, 10gen_protoss and 10gen_zerg all play on it

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
game=${SC2PATH:-$root/3rdparty/StarCraftII}
maps=$game/Maps/SMAC_Maps # where both packages look
python=${PYTHON:-$root/.venv/bin/python}
cannot_place="cannot write to $game: make room there or mend its permissions, and run this again"
offline=
accepted=false
files=true # the game and the maps
packages=true
smacv2=false
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
  --smacv2          SMACv2 and its map as well; also later, where the rest is installed
  --offline DIR     take SC2.4.10.zip, SMAC_Maps.zip and, for --smacv2, SMACv2_Maps.zip from DIR instead of
                    downloading them
  --game-only       the game and the maps, no Python packages (these always come through pip)
  --packages-only   the Python packages, no game and no maps
  --accept-license  agree to Blizzard's AI and Machine Learning License without being asked:
                    $LICENSE_URL
  --help            this text

Environment:
  SC2PATH   folder of the game, the same as for training
  PYTHON    the Python to install the packages for
  SC2_URL, SMAC_MAPS_URL, SMACV2_MAPS_URL
            other places to download the archives from
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

has_maps() { [[ -f $maps/3m.SC2Map ]]; } # install_maps puts this one there last

has_smacv2_map() { [[ -f $maps/$SMACV2_MAP ]]; }

# What is said of SMACv2 where it is not there.
without_smacv2() { if $smacv2; then say missing; else say optional; fi; }

# Prints a line for each Python package, "present", "missing" or "optional" first.
list_packages() {
    "$python" - "$root/requirements-sc2.txt" "pysc2==$PYSC2_VERSION" \
        "smac:$SMAC_COMMIT:missing" "smacv2:$SMACV2_COMMIT:$(without_smacv2)" <<'EOF'
import sys
from importlib import metadata
from pathlib import Path

requirements, pysc2, *repositories = sys.argv[1:]
pins = [line.split("#")[0].strip() for line in Path(requirements).read_text().splitlines()]
for pin in [*filter(None, pins), pysc2]:
    name, version = pin.split("==")
    found = next((dist.version for dist in metadata.distributions(name=name)), None)
    note = "" if found in (version, None) else f" (found {found})"
    print("present" if found == version else "missing", f"package {name} {version}{note}")

# AutoML publishes another package smac; a copy of another commit has another address.
for name, commit, absent in (repository.split(":") for repository in repositories):
    dist = next(iter(metadata.distributions(name=name)), None)
    source = (dist.read_text("direct_url.json") or "") if dist else ""
    note = "" if dist is None or commit in source else f" (found another {name}, {dist.version})"
    print("present" if commit in source else absent, f"package {name}, commit {commit[:10]}{note}")
EOF
}

# Prints a line about one thing on disk.
list_file() { # TEST STATE_IF_ABSENT WHAT
    if "$1"; then say "present $3"; else say "$2 $3"; fi
}

# Says what is there. Returns 1 if anything is missing.
check() {
    local lines
    lines=$(
        if $files; then
            binary="$game/Versions/Base*/SC2_x64"
            list_file has_game missing "StarCraft II, $(compgen -G "$binary" || say "$binary")"
            list_file has_maps missing "SMAC's maps, $maps/*.SC2Map"
            list_file has_smacv2_map "$(without_smacv2)" "SMACv2's map, $maps/$SMACV2_MAP"
        fi
        if ! $packages; then
            :
        elif command -v "$python" >/dev/null; then
            list_packages || say "missing Python, $python does not run: name another one with PYTHON=..."
        else
            say "missing Python, $python (\`make setup\` makes it)"
        fi
    )
    say "$lines"
    if grep -q '^optional' <<<"$lines"; then say "(--smacv2 installs what is optional)"; fi
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

# Reads the headers of a download and prints the size of the whole file; nothing where the server does not say.
announced_size() {
    awk '
        { sub(/\r$/, "") }
        /^HTTP\// { status = $2; size = whole = "" } # a redirection has headers of its own
        tolower($1) == "content-length:" { size = $2 }
        tolower($1) == "content-range:" { whole = $NF; sub(/.*\//, "", whole) }
        END { if (whole ~ /^[0-9]+$/) print whole; else if (status == 200) print size }'
}

# Makes sure of an archive, and sets $archive to its path.
get_archive() { # URL NAME
    if [[ -n $offline ]]; then
        archive=$offline/$2
        [[ -f $archive ]] ||
            fail "there is no $2 in $offline: download it from $1 on a machine with a network, and give it this name"
        return
    fi
    archive=$(dirname "$game")/$2
    [[ ! -f $archive ]] || return 0 # only a complete download has this name
    need curl
    say "Downloading $1"
    local headers announced size status=0
    headers=$(curl --fail --location --retry 3 --continue-at - --dump-header - --output "$archive.part" "$1") ||
        status=$?
    announced=$(announced_size <<<"$headers")
    size=$(stat -c %s "$archive.part" 2>/dev/null || say 0)
    ((size <= ${announced:-size})) || # such as the rest of another download under this name
        fail "$archive.part has $size bytes, but $1 has $announced: delete it, and run this again"
    # curl also fails where nothing was left to download.
    [[ $size == "$announced" || ($status == 0 && -z $announced) ]] ||
        fail "could not download $1: run this again to go on where it stopped; if it fails again, delete" \
            "$archive.part, or bring $2 from elsewhere and use --offline"
    mv "$archive.part" "$archive"
}

bytes_in() { find "$1" ! -type d -printf '%s\n' | awk '{ sum += $1 } END { printf "%.0f", sum }'; }

# Unpacks $archive into a new folder $work beside the game, so that moving it into place is one quick step, and what a
# damaged archive leaves never gets there.
unpack_archive() {
    local bytes free status=0 parent
    local damaged="$archive is damaged: delete it, get it again, and run this again"
    parent=$(dirname "$game")
    need unzip
    bytes=$(unzip -Zt "$archive" | awk '{ print $3 }') || fail "$damaged"
    free=$(df -Pk "$parent" | awk 'END { print $4 }')
    ((bytes / 1024 < free)) ||
        fail "$parent has $((free / 1024)) MiB free and needs $((bytes / 1024 / 1024)): make room, or set SC2PATH"
    work=$(mktemp -d "$parent/.unpack.XXXXXX") || fail "cannot write to $parent: choose another folder with SC2PATH"
    trap 'rm -rf "$work"' EXIT
    say "Unpacking $archive"
    unzip -q -o -P "$PASSWORD" "$archive" -d "$work" || status=$?
    ((status != 50)) || fail "$parent is full: make room, or set SC2PATH, and run this again"
    ((status <= 1)) || fail "$damaged (unzip ended with $status)"
    # 1 is a warning, but unzip also ends so where it skipped files that it could not decrypt.
    ((status == 0 || bytes == $(bytes_in "$work"))) || fail "$damaged (unzip skipped some of its files)"
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
    local binary unpacked place
    binary=$(find "$work" -path '*/Versions/Base*/SC2_x64' -type f -print -quit)
    [[ -n $binary ]] || fail "$archive holds no Versions/Base*/SC2_x64: get it from $GAME_URL"
    chmod +x "$binary"
    unpacked=${binary%/Versions/*}
    if [[ ! -e $game ]] || rmdir "$game" 2>/dev/null; then
        mv "$unpacked" "$game" || fail "$cannot_place"
    else # something else is there, such as maps: add to it, and what has_game looks for last
        place=$game${binary#"$unpacked"}
        {
            mv "$binary" "$work/SC2_x64" &&
                cp -a "$unpacked/." "$game/" &&
                mv "$work/SC2_x64" "$place"
        } || fail "$cannot_place"
    fi
    drop_archive
}

install_maps() {
    if has_maps; then
        say "SMAC's maps are already in $maps"
        return
    fi
    get_archive "$MAPS_URL" SMAC_Maps.zip
    unpack_archive
    local map
    map=$(find "$work" -name 3m.SC2Map -type f -print -quit)
    [[ -n $map ]] || fail "$archive holds no 3m.SC2Map: get it from $MAPS_URL"
    {
        mkdir -p "$maps" &&
            find "$(dirname "$map")" -name '[!.]*.SC2Map' ! -name 3m.SC2Map -exec mv -t "$maps" {} + &&
            mv "$map" "$maps"
    } || fail "$cannot_place"
    drop_archive
}

install_smacv2_map() {
    if has_smacv2_map; then
        say "SMACv2's map is already in $maps"
        return
    fi
    get_archive "$SMACV2_MAPS_URL" SMACv2_Maps.zip # its own name is that of SMAC's archive
    unpack_archive
    local map
    map=$(find "$work" -name "$SMACV2_MAP" -type f -print -quit)
    [[ -n $map ]] || fail "$archive holds no $SMACV2_MAP: get it from $SMACV2_MAPS_URL"
    { mkdir -p "$maps" && mv "$map" "$maps"; } || fail "$cannot_place"
    drop_archive
}

# Installs a package of that name in $lines, if it is missing there, from its repository.
install_from_github() { # NAME COMMIT
    grep -q "^missing package $1," <<<"$lines" || return 0
    need git
    # pip keeps what is installed where another commit, or another package of this name, has the same version.
    "$python" -m pip install --no-deps --force-reinstall "$1 @ git+https://github.com/oxwhirl/$1.git@$2" ||
        fail "pip could not install $1 from GitHub: $again"
}

install_packages() {
    command -v "$python" >/dev/null ||
        fail "there is no Python at $python: run \`make setup\`, or name another one with PYTHON=..."
    local lines again="see the message above (pip needs a network), then run this again"
    lines=$(list_packages) || fail "$python does not run: name another one with PYTHON=..."
    if ! grep -q '^missing' <<<"$lines"; then
        say "The Python packages are already installed"
        return
    fi
    # Without dependencies: see requirements-sc2.txt.
    "$python" -m pip install --no-deps -r "$root/requirements-sc2.txt" "pysc2==$PYSC2_VERSION" ||
        fail "pip could not install requirements-sc2.txt and pysc2: $again"
    install_from_github smac "$SMAC_COMMIT"
    install_from_github smacv2 "$SMACV2_COMMIT"
}

while (($#)); do
    case $1 in
        --check) only_check=true ;;
        --offline)
            [[ -d ${2:-} ]] || fail "--offline needs a folder that exists, found '${2:-}'"
            offline=$2
            shift
            ;;
        --smacv2) smacv2=true ;;
        --game-only) packages=false ;;
        --packages-only) files=false ;;
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
    if $files; then
        install_game
        install_maps
        if $smacv2; then install_smacv2_map; fi
    fi
    if $packages; then install_packages; fi
fi
if ! check; then
    $only_check || fail "something is still missing: see above, and run this again"
    if $smacv2; then flag=" --smacv2"; else flag=; fi
    say "Run \`bash install_sc2.sh$flag\` to install what is missing."
    exit 1
fi
